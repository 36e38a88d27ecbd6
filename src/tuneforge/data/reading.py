"""From the rows of one source to its examples, with all that they lose on the way named in warnings."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tuneforge.console import say, warn
from tuneforge.data.columns import TURNS, Columns, Leftover, assign
from tuneforge.data.formats import Example, convert, naming, recognise, unread
from tuneforge.data.rows import Row
from tuneforge.data.turns import FLAGS, flag, listed, oddities, turn_keys
from tuneforge.errors import Problem, TuneforgeError

KEY = "data.path"


@dataclass(frozen=True)
class Read:
    """The examples of one source."""

    format: str
    examples: list[Example]
    leftover: Leftover
    skipped: int
    """Rows that do not fit the format, with data.on_bad=skip."""


@contextmanager
def about(key: str, fixed: bool = False) -> Iterator[None]:
    """Make errors about `data.path` and `data.format` name the key whose file is read.

    Args:
        key: config path of that file.
        fixed: its format is always recognised, so that advice about `data.format` would not help.
    """
    try:
        yield
    except TuneforgeError as error:
        if key == KEY:
            raise
        raise TuneforgeError.of([_about(problem, key, fixed) for problem in error.problems]) from error


def _about(problem: Problem, key: str, fixed: bool) -> Problem:
    if problem.path not in (KEY, "data.format", "data.columns", "data.encoding"):
        return problem
    fix = problem.fix
    if "data.encoding=" in fix:  # It holds for the file of data.path.
        command = re.search(r"iconv [^;]*", fix)
        fix = "convert the files of the run to UTF-8" + (f": {command[0]}" if command else "")
    if fixed and ("data.format=" in fix or "data.columns." in fix or "data.on_bad" in fix):
        fix = "write the file in one of these formats: alpaca (instruction, output), chat (messages), "
        fix += "prompt_completion (prompt, completion) or text (text)"
    return dataclasses.replace(problem, path=key, fix=fix.replace("data.path=", f"{key}="))


def read_examples(
    rows: Sequence[Row],
    wanted: str = "auto",
    columns: Columns | None = None,
    on_bad: Literal["error", "skip"] = "error",
    key: str = KEY,
) -> Read:
    """Recognise and convert rows, and warn about everything in them that is not used.

    Raises:
        TuneforgeError: rows that cannot be used.
    """
    form = recognise(rows, wanted, columns)
    names = naming(rows, form, columns)
    examples, skipped = convert(rows, form, on_bad, columns, key)
    left = unread(rows, form, names)
    _say_names(names, columns or {}, key)
    for problem in [*_skipped(skipped, len(rows), form), *left.problems(form, len(rows), key)]:
        warn(problem)
    if "." not in form:
        for problem in [*_ignored_flags(rows, names, key), *_odd(examples, key)]:
            warn(problem)
    for what, names_of in (("columns", left.metadata), ("turn keys", left.turn_metadata)):
        if names_of:
            say(f"metadata {what} of {key}, not trained on: {', '.join(name or repr(name) for name in names_of)}")
    return Read(form, examples, left, sum(problem.code == "bad-rows" for problem in skipped))


def eval_format(rows: Sequence[Row], form: str, columns: Columns, *, may_differ: bool) -> str:
    """The format of a file of evaluation rows: that of the train rows, or else one of conversations.

    Args:
        rows: of the file.
        form: of the train rows.
        columns: the user's names.
        may_differ: the train rows are conversations, and `data.format` leaves the format open.

    Raises:
        TuneforgeError: its columns do not fit.
    """
    try:
        return recognise(rows, form, columns)
    except TuneforgeError:
        if not may_differ:
            raise
        own = recognise(rows, "auto", columns)
        if own == "text":
            raise
    say(f"format of data.split.eval_path: {own}, and of {KEY}: {form}")
    return own


def _say_names(names: Columns, given: Columns, key: str) -> None:
    found = {ours: own for ours, own in names.items() if own is not None and given.get(ours) != own}
    if found:
        read = ", ".join(f"{own!r} as {ours}" for ours, own in found.items())
        say(f"columns of {key}: {read} ({' '.join(assign(own, ours) for ours, own in found.items())})")


def _skipped(skipped: Sequence[Problem], total: int, form: str) -> Iterator[Problem]:
    bad = [problem for problem in skipped if problem.code == "bad-rows"]
    if bad:
        message = (
            f"{len(bad)} of {total} rows do not fit the format {form!r} and are skipped; the first: {bad[0].message}"
        )
        yield Problem(
            "skipped-rows", message, bad[0].path, bad[0].origin, "correct them, or leave them out of the file"
        )
    aside = [problem for problem in skipped if problem.code == "rows-without-loss"]
    if aside:
        message = f"{len(aside)} of {total} rows are marked to be without loss and are left out: {aside[0].message}"
        yield Problem("rows-without-loss", message, aside[0].path, aside[0].origin)


def _ignored_flags(rows: Sequence[Row], names: Columns, key: str) -> Iterator[Problem]:
    """A warning where a turn that is no answer asks for a loss."""
    asked = [row for row in rows if any(map(_asks_in_vain, _turns(row, names)))]
    if asked:
        message = (
            f"{len(asked)} of {len(rows)} rows ask for a loss on a turn that is not the assistant's (by 'train' or a "
            "key like it): under data.train_on=assistant the loss is on assistant turns only"
        )
        fix = "data.train_on=all takes it on every turn that is not masked"
        yield Problem("ignored-train-flag", message, key, asked[0].origin, fix)


def _turns(row: Row, names: Columns) -> Iterator[Any]:
    for ours in TURNS:
        value = listed(row.fields.get(names.get(ours, ours) or ""))
        yield from value if isinstance(value, list | tuple) else ()


def _asks_in_vain(turn: object) -> bool:
    if not isinstance(turn, dict) or turn.get(turn_keys(turn)[0]) in ("assistant", "gpt"):
        return False
    return all(turn.get(name) in (None, 0, 1) for name in FLAGS) and flag(turn) is True


def _odd(examples: Sequence[Example], key: str) -> Iterator[Problem]:
    """One warning about conversations whose turns are in an unusual order."""
    found: Counter[str] = Counter()
    first = ""
    for example in examples:
        odd = oddities(example.messages)
        first = first or (example.origin if odd else "")
        found.update(odd)
    if found:
        counted = ", ".join(f"{count} with {what}" for what, count in found.items())
        message = f"of {len(examples)} conversations some have their turns in an unusual order, and are kept: {counted}"
        yield Problem("unusual-turns", message, key, first, "correct the rows if that is not meant")
