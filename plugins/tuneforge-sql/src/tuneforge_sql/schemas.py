"""Eight small databases to ask about. All are made up; two of them are never trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """One table: `id`, a label, and columns with values worth asking for."""

    name: str
    """A plural in -s: without it, the name that a reference to a row carries."""
    label: str
    """The text column that tells one row from another."""
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Text column -> the values that questions ask for."""
    numbers: Mapping[str, range] = field(default_factory=dict)
    """Integer column -> the values that questions compare with."""

    @property
    def key(self) -> str:
        """The column in which a row of another table refers to one of this: `author_id` for authors."""
        return f"{self.name.removesuffix('s')}_id"


@dataclass(frozen=True)
class Schema:
    """A database: a table of things, and the table that these belong to.

    No two columns share a name but `id`, so that a join needs no qualified names.
    """

    name: str
    things: Table
    owners: Table
    held_out: bool = False

    @property
    def sql(self) -> str:
        """The CREATE TABLE statements, a line each."""
        return "\n".join(self._create(table) for table in (self.things, self.owners))

    def _create(self, table: Table) -> str:
        # Lower case throughout: SQL does not mind, and most tokenizers spend one token on `select` and six on `SELECT`.
        columns = ["id integer", f"{table.label} text"]
        columns += [f"{name} text" for name in table.words]
        columns += [f"{name} integer" for name in table.numbers]
        columns += [f"{self.owners.key} integer"] if table is self.things else []
        return f"create table {table.name} ({', '.join(columns)});"


SCHEMAS = (
    Schema(
        "shop",
        Table(
            "products",
            "name",
            {"brand": ("acme", "north", "delta", "orion"), "color": ("red", "green", "black")},
            {"price": range(5, 100, 5), "stock": range(10, 200, 10)},
        ),
        Table("suppliers", "company", {"city": ("paris", "oslo", "madrid")}, {"rating": range(1, 6)}),
    ),
    Schema(
        "school",
        Table(
            "students",
            "name",
            {"sport": ("tennis", "chess", "rowing"), "language": ("french", "latin", "german")},
            {"age": range(10, 19), "score": range(40, 100, 5)},
        ),
        Table("teachers", "surname", {"subject": ("math", "art", "history")}, {"hours": range(10, 30, 2)}),
    ),
    Schema(
        "cinema",
        Table(
            "films",
            "title",
            {"type": ("comedy", "western", "thriller"), "format": ("digital", "reel", "tape")},
            {"year": range(1950, 2025, 5), "length": range(80, 180, 10)},
        ),
        Table("directors", "name", {"country": ("italy", "japan", "france")}, {"awards": range(1, 10)}),
    ),
    Schema(
        "airport",
        Table(
            "flights",
            "code",
            {"target": ("london", "cairo", "lima", "tokyo"), "status": ("late", "open", "closed")},
            {"distance": range(200, 3000, 200), "seats": range(50, 300, 25)},
        ),
        Table("pilots", "name", {"level": ("junior", "senior", "chief")}, {"salary": range(30, 90, 5)}),
    ),
    Schema(
        "zoo",
        Table(
            "animals",
            "name",
            {"food": ("meat", "fish", "grass"), "origin": ("asia", "africa", "europe")},
            {"weight": range(20, 900, 40), "height": range(20, 300, 20)},
        ),
        Table("keepers", "surname", {"shift": ("day", "night", "weekend")}, {"pay": range(20, 60, 5)}),
    ),
    Schema(
        "music",
        Table(
            "songs",
            "title",
            {"style": ("jazz", "rock", "folk", "pop"), "key": ("minor", "major")},
            {"plays": range(100, 2000, 100), "minutes": range(2, 10)},
        ),
        Table("artists", "name", {"region": ("south", "west", "east")}, {"albums": range(1, 12)}),
    ),
    Schema(
        "library",
        Table(
            "books",
            "title",
            {"kind": ("novel", "poetry", "travel"), "language": ("english", "spanish", "polish")},
            {"year": range(1900, 2020, 10), "pages": range(100, 600, 50)},
        ),
        Table("authors", "name", {"country": ("spain", "poland", "kenya")}, {"prizes": range(1, 8)}),
        held_out=True,
    ),
    Schema(
        "clinic",
        Table(
            "visits",
            "patient",
            {"reason": ("cough", "fever", "injury"), "room": ("north", "south", "tower")},
            {"cost": range(20, 400, 20), "days": range(1, 15)},
        ),
        Table("doctors", "name", {"field": ("heart", "eyes", "skin")}, {"age": range(30, 65, 5)}),
        held_out=True,
    ),
)
