"""The row: what every data source yields, before anything is known about its format."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUP_COLUMNS = ("group", "conversation_id", "document_id")
"""Columns that say which rows belong together; the first one with a value counts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source, with the place it came from so that every message can name it."""

    fields: Mapping[str, Any]
    """Column name -> value, as the source has it."""
    origin: str
    """`rows.jsonl:12`, `json.decoder.JSONDecoder.decode`: where a reader would find it."""
    group: str = ""
    """What must not be torn apart by a split (module, conversation, document); "" means the row itself."""
    held_out: bool | None = None
    """The source's own split: True for evaluation, False for training; None where the source has no say."""


def kind_of(value: object) -> str:
    """What a message calls a value: JSON's words, which are those of the user's file."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def first_few(lines: Sequence[str], limit: int) -> str:
    """The first `limit` lines indented under a message, and how many more there are."""
    more = [f"and {len(lines) - limit} more"] if len(lines) > limit else []
    return "".join(f"\n  {line}" for line in [*lines[:limit], *more])


def parse_json(text: str) -> Any:
    """A JSON value.

    Raises:
        ValueError: no JSON, or an object with a key twice, of which one value would be lost.
        RecursionError: it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"one object has these keys twice: {twice([key for key, _ in pairs])}")
    return fields


def twice(names: Sequence[str]) -> str:
    """The names that are there more than once."""
    return ", ".join(repr(name) for name, count in Counter(names).items() if count > 1)
