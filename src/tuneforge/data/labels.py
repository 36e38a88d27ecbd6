"""The classes of a classification run: which there are, and in what order, worked out before a model is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tuneforge.data.formats import Example
from tuneforge.data.rows import first_few
from tuneforge.errors import TuneforgeError

_SHOWN = 5
"""Labels that a message names; the rest are counted."""


@dataclass(frozen=True)
class Labels:
    """The classes in the order of their ids."""

    names: tuple[str, ...]
    multi: bool
    """A row may have several of them, or none."""

    def ids(self, example: Example) -> list[int]:
        """The ids of the classes that an example has."""
        return [self.names.index(name) for name in example.labels or ()]


def labels_of(train: Sequence[Example], held: Sequence[Example], given: Sequence[str] | None) -> Labels | None:
    """The classes of these examples: `given`, or all of the train side, sorted; None where no example has any.

    Raises:
        TuneforgeError: labels that cannot be learnt or measured, or that are not among the given ones.
    """
    if all(example.labels is None for example in (*train, *held)):
        return None
    multi = _one_kind([*train, *held])
    seen = {name: _places(side) for name, side in (("train", train), ("eval", held))}
    names = tuple(given) if given is not None else tuple(sorted(seen["train"], key=_order))
    if given is not None:
        _check_given(names, {**seen["eval"], **seen["train"]})
    unknown = {name: place for name, place in seen["eval"].items() if name not in names}
    if unknown:
        raise TuneforgeError(
            "label-not-in-train",
            f"{_count(len(unknown), 'label')} of the eval rows {'are' if len(unknown) > 1 else 'is'} in no train row, "
            f"so never learnt:{_listed(unknown)}",
            path="data",
            fix="add train rows for each, leave those rows out, or name all labels in data.labels=[...]",
        )
    if len(names) < (1 if multi else 2):
        raise TuneforgeError(
            "one-label",
            f"the rows have {_count(len(names), 'label')}{f' ({names[0]})' if names else ''}, "
            "and there is nothing to tell apart",
            path="data",
            fix="give rows of at least two labels",
        )
    return Labels(names, multi)


def majority(examples: Sequence[Example]) -> float:
    """Share of the examples that the answer most common among them is right for."""
    counts = Counter(example.labels for example in examples)
    return max(counts.values()) / len(examples)


def _one_kind(examples: Sequence[Example]) -> bool:
    """Whether rows have several labels.

    Raises:
        TuneforgeError: some have one, some a list, some none.
    """
    firsts: dict[str, str] = {}
    for example in examples:
        kind = "no label" if example.labels is None else "a list" if example.multi_label else "one label"
        firsts.setdefault(kind, example.origin)
    if len(firsts) > 1:
        found = ", ".join(f"{origin} has {kind}" for kind, origin in firsts.items())
        raise TuneforgeError(
            "mixed-labels",
            f"rows with one label and rows with a list of them are learnt by different losses: {found}",
            path="data",
            fix='write all rows alike: {"text", "label"}, or {"text", "labels": [...]}, be it a list of one',
        )
    return "a list" in firsts


def _places(examples: Sequence[Example]) -> dict[str, str]:
    """Label -> where it stands first."""
    found: dict[str, str] = {}
    for example in examples:
        for name in example.labels or ():
            found.setdefault(name, example.origin)
    return found


def _check_given(names: Sequence[str], seen: dict[str, str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice or not names:
        message = f"names {', '.join(map(repr, twice))} twice" if twice else "is an empty list"
        raise TuneforgeError("bad-labels", message, path="data.labels", fix="name each label once")
    missing = {name: place for name, place in seen.items() if name not in names}
    if missing:
        raise TuneforgeError(
            "label-not-given",
            f"leaves out {_count(len(missing), 'label')} that rows have:{_listed(missing)}",
            path="data.labels",
            fix="name them too, or leave their rows out",
        )


def _listed(places: dict[str, str]) -> str:
    return first_few([f"{name!r} (first in {place})" for name, place in sorted(places.items())], _SHOWN)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by their value, before words."""
    return (0, int(name), name) if name.isdecimal() and name.isascii() else (1, 0, name)
