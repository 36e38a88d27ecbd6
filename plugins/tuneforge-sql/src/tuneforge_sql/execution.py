"""Whether two SQL statements answer alike: both are run on the same made-up rows.

What a model writes is not to be trusted. It runs in memory, on a connection that may read and nothing else, with bounds
on work, on the length of values and on rows. The bound on work counts steps of SQLite's machine rather than seconds, so
that a score is the same on a slow computer.
"""

import random
import re
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from typing import Any

Rows = list[tuple[Any, ...]]

FILLINGS = 3
"""Databases that an answer must be right on: on a single one, a wrong query is right by chance more often."""
ROWS_A_TABLE = 20
MAX_STEPS = 500_000
"""Steps of SQLite's machine for one statement, a few tens of milliseconds; a join of two such tables takes 5,000."""
MAX_ROWS = 1000
"""Rows of a result; a longer one is no answer."""
_STEPS_A_CALL = 1000
_LIMITS = {
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 10_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_COLUMN: 100,
}
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
_CREATING = _READING | {
    *(sqlite3.SQLITE_CREATE_TABLE, sqlite3.SQLITE_CREATE_INDEX, sqlite3.SQLITE_CREATE_VIEW),
    *(sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_REINDEX),
}
_FUNCTIONS = frozenset(
    (
        *("avg", "count", "group_concat", "max", "min", "sum", "total"),
        *("abs", "coalesce", "ifnull", "nullif", "round"),
        *(
            "glob",
            "instr",
            "length",
            "like",
            "lower",
            "ltrim",
            "replace",
            "rtrim",
            "substr",
            "substring",
            "trim",
            "upper",
        ),
        *("date", "datetime", "julianday", "strftime"),
    )
)
"""Named one by one: `load_extension`, and what draws at random, has no place in an answer."""
_WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord", "grove", "heath")
_LITERAL = re.compile(r"'((?:[^']|'')*)'|\b(\d+(?:\.\d+)?)\b")
_FAILURES = (sqlite3.Error, sqlite3.Warning, ValueError)
"""What Python's sqlite3 raises on statements it does not take; ValueError is for text that is no UTF-8."""


def same_answer(schema: str, wanted: str, sql: str) -> bool:
    """Whether `sql` gives what `wanted` gives, whatever the tables hold; in the same order if `wanted` sorts."""
    ordered = re.search(r"\border\s+by\b", wanted, re.IGNORECASE) is not None
    for filling in range(FILLINGS):
        right = run(schema, wanted, wanted, filling)
        found = run(schema, sql, wanted, filling)
        if right is None or found is None:
            return False
        if right != found if ordered else Counter(right) != Counter(found):
            return False
    return True


def can_judge(schema: str, wanted: str) -> bool:
    """Whether SQLite runs `wanted` and some rows come out: nothing is also what many a wrong query gives."""
    results = [run(schema, wanted, wanted, filling) for filling in range(FILLINGS)]
    return all(rows is not None for rows in results) and any(results)


def run(schema: str, sql: str, wanted: str, filling: int) -> Rows | None:
    """The rows that `sql` gives; None where it fails, is refused or goes on for too long.

    Args:
        schema: CREATE TABLE statements.
        sql: what to run; untrusted.
        wanted: the right statement. What it compares with is put among the rows, or most conditions would hold nowhere.
        filling: which made-up rows.
    """
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        try:
            _bound(connection)
            connection.set_authorizer(_authorizer(_CREATING))
            connection.executescript(schema)
            connection.set_authorizer(None)
            _fill(connection, wanted, filling)
            connection.execute("pragma query_only = on")
            connection.set_authorizer(_authorizer(_READING))
            _count_steps(connection)
            rows = connection.execute(sql).fetchmany(MAX_ROWS + 1)
        except _FAILURES:
            return None
    return [tuple(map(_rounded, row)) for row in rows] if len(rows) <= MAX_ROWS else None


def _bound(connection: sqlite3.Connection) -> None:
    for limit, value in _LIMITS.items():
        connection.setlimit(limit, value)
    connection.execute("pragma temp_store = memory")  # a sort of many rows would else open a file
    _count_steps(connection)


def _count_steps(connection: sqlite3.Connection) -> None:
    """Interrupt the connection after `MAX_STEPS` from here."""
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls * _STEPS_A_CALL > MAX_STEPS

    connection.set_progress_handler(stop, _STEPS_A_CALL)


def _authorizer(allowed: set[int]) -> Callable[[int, str | None, str | None, str | None, str | None], int]:
    """What SQLite asks, while it compiles a statement, about everything that statement would do."""

    def judge(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
        known = action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS
        return sqlite3.SQLITE_OK if known or action in allowed else sqlite3.SQLITE_DENY

    return judge


# The made-up rows


def _fill(connection: sqlite3.Connection, wanted: str, filling: int) -> None:
    values = _Values(wanted, random.Random(f"{filling}:{wanted}"))  # noqa: S311  no secret
    query = "select name from sqlite_schema where type = 'table' and name not like 'sqlite%'"
    for (table,) in connection.execute(query).fetchall():
        columns = connection.execute("select name, type, pk from pragma_table_info(?)", (table,)).fetchall()
        names, marks = ", ".join(_quoted(name) for name, _, _ in columns), ", ".join("?" * len(columns))
        rows = [[values.of(i, *column) for column in columns] for i in range(1, ROWS_A_TABLE + 1)]
        # "or ignore": a row that breaks a constraint of the schema is left out.
        connection.executemany(f"insert or ignore into {_quoted(table)} ({names}) values ({marks})", rows)  # noqa: S608


class _Values:
    """Cells, half of them at, just below or just above what the wanted SQL compares with."""

    def __init__(self, wanted: str, rng: random.Random) -> None:
        found = _LITERAL.findall(wanted)
        self.words: list[str] = [text.replace("''", "'") for text, number in found if not number]
        numbers = [float(number) if "." in number else int(number) for _, number in found if number]
        self.numbers = [number + step for number in numbers for step in (-1, 0, 1)]
        self.rng = rng

    def of(self, row: int, column: str, kind: str, key: int) -> str | float:
        """The cell of a column with the declared type `kind`; a primary key has a different one in each row."""
        rng, column, kind = self.rng, column.lower(), kind.lower()
        if any(word in kind for word in ("char", "clob", "text")):
            if key:
                return f"{rng.choice(_WORDS)} {row}"
            return rng.choice(self.words if self.words and rng.random() < 0.5 else _WORDS)
        if "date" in kind or "time" in kind:
            return f"{rng.randint(2015, 2024)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        if key or column == "id":
            return row
        if column.endswith("id"):
            return rng.randint(1, ROWS_A_TABLE)
        return rng.choice(self.numbers) if self.numbers and rng.random() < 0.5 else rng.randint(0, 100)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _rounded(value: Any) -> Any:
    """Sums in another order differ in their last digits."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
