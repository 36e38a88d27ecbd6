"""`data.format=tuneforge_sql.format.text_to_sql`: the columns schema, question and sql as a conversation."""

import re
from collections.abc import Mapping
from typing import Any

from tuneforge.data.formats import Example, RowError
from tuneforge.data.rows import kind_of

COLUMNS = ("schema", "question", "sql")
_BREAK = "\n\n"
"""Between schema and question. A question is one line, so the last break of a prompt is this one."""


def text_to_sql(fields: Mapping[str, Any]) -> Example:
    """The row as a turn with schema and question, and one with the SQL.

    Raises:
        RowError: a column is missing, empty or no text, or the schema creates no table.
    """
    schema, question, sql = (_text(fields, column) for column in COLUMNS)
    if not re.search(r"\bcreate\s+table\b", schema, re.IGNORECASE):
        raise RowError(f"'schema' has no CREATE TABLE: {schema[:40]!r}")
    asked = schema + _BREAK + " ".join(question.split())
    return Example(messages=({"role": "user", "content": asked}, {"role": "assistant", "content": sql}))


def schema_and_sql(example: Example) -> tuple[str, str]:
    """Back from an example of this format: its schema, and the SQL that is wanted."""
    asked, answered = example.messages
    return asked["content"].rpartition(_BREAK)[0], answered["content"]


def _text(fields: Mapping[str, Any], column: str) -> str:
    if column not in fields:
        raise RowError(f"no column {column!r} (it has: {', '.join(map(repr, fields)) or 'none'})")
    value = fields[column]
    if not isinstance(value, str):
        raise RowError(f"{column!r} is {kind_of(value)}, not text")
    if not value.strip():
        raise RowError(f"{column!r} is empty")
    return value.strip()
