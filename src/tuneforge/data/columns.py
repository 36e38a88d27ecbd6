"""Which column of the user's is which of ours, and what becomes of the columns that no format reads."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tuneforge.data.rows import GROUP_COLUMNS, Row
from tuneforge.data.turns import FLAGS, UNSUPPORTED, WEIGHTS, is_about_loss, is_blank, listed, turn_keys
from tuneforge.errors import Problem, TuneforgeError, did_you_mean

Columns = Mapping[str, str | None]
"""Our name of a column -> the user's; null: the column of this name is left unread."""

NAMES = (
    "instruction", "input", "output", "system", "history", "messages", "conversations", "prompt", "completion", "text",
    "label", "labels",
)  # fmt: skip
"""What formats read, and so what `data.columns` can assign."""
SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "sys_prompt")
"""Columns with a system text."""

ASKS = (
    "instruction", "question", "query", "prompt", "problem", "input", "inputs", "document", "article", "dialogue",
    "human",
)  # fmt: skip
"""Columns that hold what is asked, in sets that are laid out like Alpaca's under other names."""
GIVES = (
    "output", "response", "answer", "completion", "solution", "summary", "highlights", "target", "targets", "reply",
    "assistant", "gpt",
)  # fmt: skip
"""Columns that hold what is answered."""
TURNS = ("messages", "conversations", "prompt", "completion", "history")
"""Columns that hold turns, or may."""
CONTEXT = "context"
"""What Dolly calls Alpaca's `input`."""

_METADATA = frozenset({
    "id", "idx", "index", "uid", "uuid", "guid", "hash", "sha", "md5", "key", "source", "src", "dataset",
    "dataset_name", "origin", "url", "link", "license", "licence", "lang", "language", "locale", "score", "rating",
    "quality", "category", "categories", "subcategory", "topic", "topics", "tag", "tags", "type", "kind", "domain",
    "subject", "difficulty", "level", "split", "date", "time", "timestamp", "created", "updated", "author", "user",
    "model", "model_name", "generator", "version", "meta", "metadata", "info", "extra", "name", "file", "filename",
    "path", "row", "line",
    "", *GROUP_COLUMNS,
})  # fmt: skip
"""Columns about a row."""
_METADATA_FORM = re.compile(
    r"(num|n|is|has|id|idx)_.+|.+_(id|ids|idx|at|by|count|length|len|hash|url|score|date|name)|Unnamed: \d+|__.*__"
)
_SHOWN = 8


def check_columns(given: Columns, rows: Sequence[Row], form: str = "auto") -> None:
    """Refuse an assignment to a column that no format reads, or of one that no row has.

    A plugin's format may read columns of any name.
    """
    known_names = NAMES if "." not in form else tuple(given)
    have = {name for row in rows for name in row.fields}
    for ours, own in given.items():
        if own is None and ours not in have:
            message, known = f"the rows have no column {ours!r} to leave unread", have
        elif own is not None and ours not in known_names:
            message, known = f"no format reads a column {ours!r}", set(NAMES)
        elif own is not None and own not in have:
            message, known = f"the rows have no column {own!r}", have
        else:
            continue
        wrong = ours if own is None or ours not in known_names else own
        raise TuneforgeError("unknown-column", message, path=f"data.columns.{ours}", fix=did_you_mean(wrong, known))


def assign(own: str, ours: str) -> str:
    """The override, quoted for a shell, that has a column of the user's read as one of ours."""
    plain = re.fullmatch(r"[A-Za-z_][\w-]*", own, re.ASCII) and own.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
        "none",
    )
    value = own if plain else '"' + own.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return shlex.quote(f"data.columns.{ours}={value}")


def drop(own: str) -> str:
    """How to leave a column of the user's unread: the override, quoted for a shell, where its name can be a key."""
    if re.fullmatch(r"[A-Za-z_][\w-]*", own, re.ASCII):
        return f"data.columns.{own}=null"
    if re.fullmatch(r"[A-Za-z_][\w.-]*( [\w.-]+)*", own, re.ASCII):
        return shlex.quote(f"data.columns={{{own}: null}}")
    return f"remove the column {own!r} from the rows"


def layout(columns: Iterable[str], taken: Callable[[Iterable[str]], Sequence[str]], wanted: str) -> dict[str, str]:
    """Our names of the columns of a set that is laid out like Alpaca's under other names, as Dolly's is.

    Args:
        columns: those of the rows.
        taken: the formats that columns fit as they are.
        wanted: data.format.

    Raises:
        TuneforgeError: it is not clear which column is which.
    """
    have = list(columns)
    fitting = taken(have)
    if wanted not in ("auto", "alpaca", "prompt_completion") or [name for name in fitting if name != "text"]:
        alpaca = "alpaca" in fitting and wanted in ("auto", "alpaca")
        return {"input": CONTEXT} if alpaca and CONTEXT in have and "input" not in have else {}
    gives = [name for name in GIVES if name in have]
    asks = [name for name in ASKS if name in have]
    if fitting and gives:
        raise _unclear(["text", *asks], gives, text=True)
    if len(asks) > 1 and "input" in asks:
        asks.remove("input")  # Alpaca's own: it goes with whatever holds the instruction
    if not asks or not gives or fitting:
        return {}
    if len(asks) > 1 or len(gives) > 1:
        raise _unclear(asks, gives)
    if wanted == "prompt_completion":
        return _other({"prompt": asks[0], "completion": gives[0]})
    context = {"input": CONTEXT} if CONTEXT in have and "input" not in have else {}
    return _other({"instruction": asks[0], "output": gives[0], **context})


def example(rows: Sequence[Row], wanted: Sequence[str]) -> str:
    """Assignments of the rows' own columns to `wanted`, by their order, or of one that holds turns to `messages`."""
    columns = dict.fromkeys(name for row in rows for name in row.fields)
    held = {name: next(filter(None, (row.fields.get(name) for row in rows)), None) for name in columns}
    turns = [name for name, value in held.items() if _are_turns(value)]
    texts = [name for name, value in held.items() if isinstance(value, str)]
    texts.sort(key=_is_named_metadata)  # last
    if turns and "messages" in wanted:
        return assign(turns[0], "messages")
    pair = [name for name in wanted if name not in TURNS or name in ("prompt", "completion")][:2]
    if len(texts) < len(pair) or not pair:
        return ""
    return " ".join(assign(own, ours) for own, ours in zip(texts, pair, strict=False))


def _are_turns(value: object) -> bool:
    value = listed(value)
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _other(found: Mapping[str, str]) -> dict[str, str]:
    return {ours: own for ours, own in found.items() if ours != own}


def _unclear(asks: Sequence[str], gives: Sequence[str], text: bool = False) -> TuneforgeError:
    what = f"what is asked could be {' or '.join(map(repr, asks))}, what is answered {' or '.join(map(repr, gives))}"
    choice = f"{assign(asks[0], 'instruction')} {assign(gives[0], 'output')}"
    fix = f"say which columns are which, for example {choice}"
    fix += "; or train on the text alone: data.format=text" if text else ""
    return TuneforgeError(
        "unclear-columns", f"it is not clear which columns are which: {what}", path="data.columns", fix=fix
    )


def rename(fields: Mapping[str, Any], columns: Columns) -> Mapping[str, Any]:
    """The row under our names."""
    if not columns:
        return fields
    moved = {*columns, *columns.values()}
    kept = {name: value for name, value in fields.items() if name not in moved}
    return kept | {ours: fields[own] for ours, own in columns.items() if own is not None and own in fields}


@dataclass(frozen=True)
class Count:
    """How many rows have something, and the first of them."""

    rows: int
    first: str


@dataclass(frozen=True)
class Leftover:
    """What the rows hold beyond what their format reads."""

    metadata: tuple[str, ...] = ()
    """Columns about a row, such as id, source or score."""
    columns: Mapping[str, Count] = field(default_factory=dict)
    """Other columns with values in them."""
    keys: Mapping[str, Count] = field(default_factory=dict)
    """Keys of turns."""
    turn_metadata: tuple[str, ...] = ()
    """Keys about a turn, such as id or timestamp."""
    assignment: str = ""
    """An override with which one of `columns` is read, where there is a plain choice."""

    def problems(self, form: str, total: int, path: str) -> list[Problem]:
        """A warning for the columns and one for the keys of turns, where there are any."""
        found = []
        if self.columns:
            read = f"to read one, say what it is, for example {self.assignment}; " if self.assignment else ""
            fix = f"{read}to count it as metadata: {drop(next(iter(self.columns)))}"
            message = f"format {form!r} does not read {_listed(self.columns, 'column', total)}"
            found.append(Problem("unread-columns", message, path, fix=fix))
        if self.keys:
            message = f"format {form!r} does not read {_listed(self.keys, 'turn key', total)}"
            found.append(Problem("unread-turn-keys", message, path, fix="move what matters into the text of the turn"))
        return found


def _listed(found: Mapping[str, Count], what: str, total: int) -> str:
    few = list(found.items())[:_SHOWN]
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    shown = ", ".join(f"{name!r} (in {count.rows} of {total} rows, first {count.first})" for name, count in few)
    return f"the {what}{'s' if len(found) > 1 else ''} {shown}{more}"


def leftover(rows: Sequence[Row], reads: frozenset[str], columns: Columns) -> Leftover:
    """Which columns and turn keys of the rows are read by nothing.

    Args:
        rows: as their source has them.
        reads: the columns of the format, under our names.
        columns: the user's names.
    """
    read = {columns.get(name, name) for name in reads} - {None}
    spoken = {columns.get(name, name) for name in TURNS}
    declared = {ours for ours, own in columns.items() if own is None}
    metadata: dict[str, None] = dict.fromkeys(ours for ours, own in columns.items() if own is None)
    about_turns: dict[str, None] = {}
    unread: dict[str, tuple[int, str]] = {}
    values: dict[str, object] = {}
    keys: dict[str, tuple[int, str]] = {}
    for row in rows:
        for name, value in row.fields.items():
            if name in read:
                unread_keys, about = _keys_beside(value) if name in spoken else ([], [])
                _count(unread_keys, row.origin, keys)
                about_turns |= dict.fromkeys(about)
            elif name not in declared and not _is_empty(name, value) and not _is_flag(name, value):
                if _is_named_metadata(name) or (isinstance(value, int | float) and not _is_learnt(name, value)):
                    metadata[name] = None
                else:
                    _count([name], row.origin, unread)
                    values.setdefault(name, value)
    free = reads - {ours for ours, own in columns.items() if own is not None} - {n for r in rows for n in r.fields}
    return Leftover(
        tuple(name for name in metadata if name not in unread),
        {name: Count(*count) for name, count in unread.items()},
        {name: Count(*count) for name, count in keys.items()},
        tuple(name for name in about_turns if name not in keys),
        _assignment(values, free),
    )


def _count(names: Iterable[str], origin: str, into: dict[str, tuple[int, str]]) -> None:
    for name in names:
        rows, first = into.get(name, (0, origin))
        into[name] = (rows + 1, first)


def _assignment(unread: Mapping[str, object], free: frozenset[str]) -> str:
    """The override that reads the first unread column of which it is plain what it could be."""
    for name, value in unread.items():
        turns = listed(value)
        if (
            isinstance(turns, list | tuple)
            and turns
            and all(isinstance(turn, list | tuple | Mapping) for turn in turns)
        ):
            ours = "history" if "history" in name.lower() else ""
        elif not isinstance(value, str) or name in (*NAMES, *GIVES):
            ours = ""
        else:
            ours = "system" if "sys" in name.lower() else "input"
        if ours in free:
            return assign(name, ours)
    return ""


def _is_empty(name: str, value: object) -> bool:
    return is_blank(value) and (value is not False or name in UNSUPPORTED)


def _is_flag(name: str, value: object) -> bool:
    return name in FLAGS or (name in WEIGHTS and isinstance(value, int | float) and value in (0, 1))


@cache
def _is_named_metadata(name: str) -> bool:
    """Whether a column or turn key is known to be about the row or the turn."""
    plain = name.strip()
    return name not in UNSUPPORTED and (plain.lower() in _METADATA or _METADATA_FORM.fullmatch(plain) is not None)


def _is_learnt(name: str, value: object) -> bool:
    """Whether a number, or true or false, may be meant to change what is learnt."""
    return name in UNSUPPORTED or name in NAMES or is_about_loss(name, value)


def _keys_beside(value: object) -> tuple[list[str], list[str]]:
    """Keys of turns in a column that hold something and are not read: the others, and those about the turn."""
    value = listed(value)
    turns = [turn for turn in value if isinstance(turn, Mapping)] if isinstance(value, list | tuple) else []
    unread: dict[str, None] = {}
    about: dict[str, None] = {}
    for turn in turns:
        read = turn_keys(turn)
        for key, one in turn.items():
            if key not in read and not _is_flag(key, one) and not _is_empty(key, one):
                (about if key != "name" and _is_named_metadata(key) else unread)[key] = None
    return list(unread), list(about)
