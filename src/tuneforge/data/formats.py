"""What the columns of a row mean: how a format is recognised, and the conversion of rows to examples."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any, Literal

from tuneforge.data import examples as known
from tuneforge.data.columns import Columns, Leftover, assign, drop, example, layout, leftover, rename
from tuneforge.data.examples import Example, WithoutLossError, alike, are_turns, converter
from tuneforge.data.rows import Row, first_few
from tuneforge.data.turns import Message, RowError
from tuneforge.errors import Problem, TuneforgeError, did_you_mean, near
from tuneforge.option_targets import FORMAT
from tuneforge.targets import load

__all__ = ["FORMATS", "Example", "Message", "RowError", "convert", "naming", "recognise", "unread"]

FORMATS = tuple(known.FORMATS)

_LOOK = 100
"""Rows whose columns decide the format."""
_ALIKE = 0.8
"""Similarity of two names above which one is taken for a slip of the other."""
_SHOWN = 5
"""Bad rows that a message spells out; the rest are counted."""


def naming(rows: Sequence[Row], wanted: str = "auto", columns: Columns | None = None) -> Columns:
    """The columns that are read under another name: those given, and those of a layout known under other names.

    Raises:
        TuneforgeError: it is not clear which column is which.
    """
    given = dict(columns or {})
    if "." in wanted:
        return given
    for ours, other in (("messages", "conversations"), ("conversations", "messages")):
        if given.get(ours) is not None and other not in given and any(other in row.fields for row in rows[:_LOOK]):
            given[other] = None  # one of them was chosen
    have = dict.fromkeys(name for row in rows[:_LOOK] for name in rename(row.fields, given))
    considered = _considered(wanted)
    found = layout(
        have, lambda names: [name for name in considered if known.FORMATS[name].fits(dict.fromkeys(names))], wanted
    )
    back = {ours: own for ours, own in given.items() if own is not None}
    asked, answered = found.get("instruction", "instruction"), found.get("output", "output")
    chosen = {"prompt", "completion"} & back.keys()
    if {"instruction", "output"} & found.keys() and (chosen or _holds_turns(rows, back.get(asked, asked))):
        found = {ours: own for ours, own in (("prompt", asked), ("completion", answered)) if ours != own}
    return {**given, **{ours: back.get(own, own) for ours, own in found.items()}}


def _holds_turns(rows: Sequence[Row], column: str) -> bool:
    return any(are_turns(row.fields.get(column)) for row in rows[:_LOOK])


def _considered(wanted: str) -> list[str]:
    return [name for name, f in known.FORMATS.items() if not f.by_name_only] if wanted == "auto" else [wanted]


def recognise(rows: Sequence[Row], wanted: str = "auto", columns: Columns | None = None) -> str:
    """The format of the rows: `wanted` if their columns allow it; with "auto", the one format that they fit.

    Raises:
        TuneforgeError: they fit none, or several.
    """
    if wanted != "auto" and wanted not in known.FORMATS and "." not in wanted:
        hint = did_you_mean(wanted, ["auto", *known.FORMATS])
        raise TuneforgeError("unknown-format", f"unknown format {wanted!r}", path="data.format", fix=hint)
    if not rows:
        raise _no_rows()
    if "." in wanted:
        return wanted  # a function of a plugin's: it judges each row itself
    names = naming(rows, wanted, columns)
    renamed = [replace(row, fields=rename(row.fields, names)) for row in rows[:_LOOK]]
    found = dict.fromkeys(name for row in renamed for name in row.fields)
    considered = _considered(wanted)
    fitting = [name for name in considered if known.FORMATS[name].fits(found)]
    if not fitting:
        raise _no_format(renamed, considered)
    # Sets often carry the rendered text beside its parts (tatsu-lab/alpaca does); the parts say more.
    fitting = [name for name in fitting if name != "text"] or fitting
    if len(fitting) > 1:
        raise _several_formats(renamed, fitting)
    _check_optional(found, fitting[0])
    return fitting[0]


def _no_rows() -> TuneforgeError:
    fix = "name a source with at least one row"
    return TuneforgeError("no-rows", "the data has no rows", path="data.path", fix=fix)


def _check_optional(columns: Mapping[str, Any], form: str) -> None:
    """Refuse `Input` or `inputs` beside no `input`: an optional column misspelt would be dropped in silence."""
    for wanted in known.FORMATS[form].optional:
        close = [name for name in columns if name.strip().lower().rstrip("s") == wanted]
        if close and wanted not in columns:
            message = f"column {close[0]!r} is close to {wanted!r}, which {form} reads, but not the same"
            fix = f"rename or remove the column, or say what it is: {assign(close[0], wanted)}"
            raise TuneforgeError("misspelt-column", message, path="data.format", fix=fix)


def _no_format(rows: Sequence[Row], considered: Sequence[str]) -> TuneforgeError:
    columns = dict.fromkeys(name for row in rows for name in row.fields)
    needed = dict.fromkeys(name for form in considered for names in known.FORMATS[form].columns for name in names)
    misses = []
    for column in columns.keys() - needed:
        close = near(column.strip().lower(), sorted(needed.keys() - columns.keys()), limit=1)
        # `context` is near to `text` for a search of names, and is another thing.
        alike = [name for name in close if SequenceMatcher(None, column.strip().lower(), name).ratio() >= _ALIKE]
        misses += [f"column {column!r} is close to {name!r}: rename it, or {assign(column, name)}" for name in alike]
    wants = f"format {considered[0]!r}" if len(considered) == 1 else "any known format"
    found = ", ".join(map(repr, columns)) or "none"
    wanted = [f"{name}: {known.FORMATS[name]}" for name in considered]
    shown = example(rows, [*needed])
    other = "columns under other names: data.columns.OURS=YOURS" + (f", for example {shown}" if shown else "")
    fix = [*sorted(misses), "columns wanted:", *(f"  {line}" for line in wanted), other]
    message = f"the columns do not fit {wants}; found: {found} (first row: {rows[0].origin})"
    return TuneforgeError("no-format", message, path="data.format", fix="\n  ".join(fix))


def _several_formats(rows: Sequence[Row], fitting: Sequence[str]) -> TuneforgeError:
    both = [row for row in rows if sum(known.FORMATS[name].fits(row.fields) for name in fitting) > 1]
    if both:
        message = f"the columns fit more than one format: {', '.join(fitting)} (first row: {both[0].origin})"
        return TuneforgeError(
            "several-formats", message, path="data.format", fix=f"choose one: data.format={fitting[0]}"
        )
    firsts = {name: next((row.origin for row in rows if known.FORMATS[name].fits(row.fields)), "") for name in fitting}
    found = ", ".join(f"{origin} is {name}" for name, origin in firsts.items() if origin)
    fix = "keep one format in a source"
    return TuneforgeError("several-formats", f"the rows are of different formats: {found}", path="data.format", fix=fix)


def unread(rows: Sequence[Row], format: str, columns: Columns) -> Leftover:
    """What the rows hold beyond what the format reads; nothing is known of what a plugin's function reads."""
    return Leftover() if "." in format else leftover(rows, known.FORMATS[format].reads, columns)


def convert(
    rows: Sequence[Row],
    format: str,
    on_bad: Literal["error", "skip"] = "error",
    columns: Columns | None = None,
    path: str = "data.path",
) -> tuple[list[Example], list[Problem]]:
    """Every row as an example. Bad rows are one error, or with on_bad="skip" are left out and returned as problems.

    Rows that ask to be without loss are left out and returned as problems of their own code, `rows-without-loss`.

    Raises:
        TuneforgeError: bad rows, or none that is left; it names `path`.
    """
    examples: list[Example] = []
    bad: list[Problem] = []
    aside: list[Problem] = []
    fixes: dict[str, None] = {}
    names = naming(rows, format, columns)
    to_example: Callable[[Mapping[str, Any]], Example] = load(FORMAT, format) if "." in format else converter(format)
    for row in rows:
        try:
            example = to_example(rename(row.fields, names))
        except WithoutLossError as reason:
            aside.append(Problem("rows-without-loss", str(reason), path, row.origin))
        except RowError as reason:
            bad.append(Problem("bad-rows", _own_names(str(reason), names), path, row.origin))
            if reason.column:
                fixes[f"to leave a column unread: {drop(reason.column)}"] = None
        else:
            examples.append(replace(example, origin=row.origin, group=row.group, held_out=row.held_out))
    if bad and (on_bad == "error" or not examples):
        listed = first_few([f"{problem.origin}: {problem.message}" for problem in bad], _SHOWN)
        fix = "correct these rows" + (", or leave them out: data.on_bad=skip" if examples else "")
        message = f"{len(bad)} of {len(rows)} rows cannot be used as {format!r}:{listed}"
        raise TuneforgeError("bad-rows", message, path=path, fix="; ".join([fix, *fixes]))
    if not examples:
        raise _no_rows() if not aside else _all_aside(aside, path)
    return alike(examples), bad + aside


def _own_names(reason: str, columns: Columns) -> str:
    """A reason with the user's names of the columns instead of ours."""
    for ours, own in columns.items():
        reason = reason.replace(repr(ours), repr(own)) if own is not None else reason
    return reason


def _all_aside(aside: Sequence[Problem], path: str) -> TuneforgeError:
    message = f"every row asks to be without loss; the first, {aside[0].origin}: {aside[0].message}"
    fix = f"change the rows, or leave the column unread: {drop('COLUMN')}"
    return TuneforgeError("no-rows", message, path=path, fix=fix)
