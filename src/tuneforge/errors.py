"""How a problem that the user can fix is described and printed: no traceback, one to a few lines each."""

import difflib
import errno
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TextIO

from tuneforge.masking import mask, masked_texts

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_REFUSED = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143
EXIT_OF = {
    signal.SIGINT: EXIT_SIGINT,
    signal.SIGTERM: EXIT_SIGTERM,
    signal.SIGHUP: EXIT_SIGTERM,
    signal.SIGUSR1: EXIT_SIGTERM,
}
"""Each signal that is heard, and the exit code it ends in; SIGUSR1 ends in 0 where a cluster starts the job again."""


@dataclass(frozen=True)
class Problem:
    """One thing the user can fix."""

    code: str
    """Stable name of this kind of problem: its heading in docs/errors.md."""
    message: str
    """What was wanted and what is there, in one sentence."""
    path: str = ""
    """Dotted config path it is about (`optim.lr`), or "" when it is about no single key."""
    origin: str = ""
    """The file and line, or the command-line override, that set the value."""
    fix: str = ""
    """What to do about it, in the imperative."""

    def __str__(self) -> str:
        where = self.path + (f" ({self.origin})" if self.origin else "")
        lines = [f"{where}: {self.message}" if where else self.message]
        if self.fix:
            lines.append(f"  {self.fix}")
        return "\n".join(lines)


def shown(problem: Problem) -> Problem:
    """The problem without the secrets that its texts repeat; its path is none, and stays."""
    return replace(problem, message=mask(problem.message), origin=mask(problem.origin), fix=mask(problem.fix))


class TuneforgeError(Exception):
    """Something the user can fix: printed without a traceback, exit code 2."""

    exit_code: ClassVar[int] = EXIT_USER

    def __init__(self, code: str, message: str, *, path: str = "", origin: str = "", fix: str = "") -> None:
        self.problems: list[Problem] = [Problem(code, message, path, origin, fix)]
        super().__init__(message)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "TuneforgeError":
        """All problems of one config in one error, in the order given."""
        found = list(problems)
        error = cls(found[0].code, found[0].message)
        error.problems = found
        error.args = ("\n".join(map(str, found)),)
        return error


class RefusedError(TuneforgeError):
    """A check refused the result (guard, sanity, parity gate): exit code 3."""

    exit_code = EXIT_REFUSED


class LostError(TuneforgeError):
    """Another process of the run is gone: exit code 1, as of the fault that ended it."""

    exit_code = EXIT_BUG


FULL = ("no space left on device", "disk quota exceeded", "database or disk is full", "os error 28")
"""What libraries write that keep no error number: safetensors, tokenizers, sqlite."""


def disk_error(error: BaseException, where: str = "output_root") -> TuneforgeError | None:
    """A full disk or a missing permission as an error of ours; None for anything else.

    Args:
        error: whatever was raised.
        where: what was being written, where the error does not say it.
    """
    number = error.errno if isinstance(error, OSError) else None
    place = getattr(error, "filename", None) or where
    if number in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error).lower() for text in FULL):
        return TuneforgeError(
            "disk-full",
            f"no space left on the device that holds {place}",
            path="output_root",
            fix="free some space or set another output_root; the checkpoints already written are whole: resume=RUN",
        )
    if isinstance(error, PermissionError):
        message = f"{place}: {error.strerror}"
        return TuneforgeError("not-writable", message, path="output_root", fix="choose a folder that you may write to")
    return None


def near(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known names closest to `name`, best first; a name within two edits is always among them."""
    names = list(dict.fromkeys(known))
    distance = {n: _edits(name, n, 2) for n in names}
    # A name of two letters is within two edits of every other such name: there one edit is near.
    close = sorted((n for n in names if distance[n] <= min(2, len(n) - 1)), key=distance.__getitem__)
    loose = difflib.get_close_matches(name, names, n=limit, cutoff=0.6)
    return list(dict.fromkeys([*close, *loose]))[:limit]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? known: ...`, the near names first and then all of them, sorted."""
    names = sorted(set(known))
    close = near(name, names)
    hint = f"did you mean {' or '.join(repr(c) for c in close)}? " if close else ""
    return f"{hint}known here: {', '.join(names) or 'nothing'}"


def _edits(a: str, b: str, at_most: int) -> int:
    """Damerau-Levenshtein distance (a swap of neighbours is one edit), cut off above `at_most`."""
    if abs(len(a) - len(b)) > at_most:
        return at_most + 1
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]


JSON_ERRORS = "TUNEFORGE_JSON_ERRORS"
"""Set to 1, as `--json-errors` does for a command and its children, problems are printed as JSON."""


def print_problems(problems: Sequence[Problem], severity: str = "error", stream: TextIO | None = None) -> None:
    """Print each problem as `error: ...`, red on a terminal (not with NO_COLOR set), or as one JSON object a line."""
    out = stream or sys.stderr
    for problem in problems:
        if os.environ.get(JSON_ERRORS) == "1":
            print(json.dumps(masked_texts(as_record(problem, severity)), ensure_ascii=False), file=out, flush=True)
        else:
            print(f"{_label(severity, out)}: {shown(problem)}", file=out, flush=True)


def as_record(problem: Problem, severity: str = "error") -> dict[str, Any]:
    """The problem as `--json-errors` prints it."""
    return {
        "severity": severity,
        "code": problem.code,
        "path": problem.path,
        "origin": problem.origin,
        "message": problem.message,
        "fix": problem.fix,
    }


def _label(severity: str, out: TextIO) -> str:
    if not out.isatty() or "NO_COLOR" in os.environ:
        return severity
    return f"\033[1;{31 if severity == 'error' else 33}m{severity}\033[0m"
