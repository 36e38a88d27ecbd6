"""How a problem that the user can fix is described and printed: no traceback, one to a few lines each."""

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

EXIT_OK = 0
EXIT_BUG = 1
EXIT_USER = 2
EXIT_REFUSED = 3
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


@dataclass(frozen=True)
class Problem:
    """One thing the user can fix."""

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


class TuneforgeError(Exception):
    """Something the user can fix: printed without a traceback, exit code 2."""

    exit_code = EXIT_USER

    def __init__(self, message: str = "", *, path: str = "", origin: str = "", fix: str = "") -> None:
        self.problems: list[Problem] = [Problem(message, path, origin, fix)] if message else []
        super().__init__(message)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> "TuneforgeError":
        """All problems of one config in one error, in the order given."""
        error = cls()
        error.problems = list(problems)
        error.args = ("\n".join(map(str, error.problems)),)
        return error


class RefusedError(TuneforgeError):
    """A check refused the result (guard, sanity, parity gate): exit code 3."""

    exit_code = EXIT_REFUSED


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


def print_problems(problems: Sequence[Problem], stream: TextIO | None = None) -> None:
    """Print each problem as `error: ...`; red on a terminal, plain elsewhere and with NO_COLOR set."""
    out = stream or sys.stderr
    colour = out.isatty() and "NO_COLOR" not in os.environ
    label = "\033[1;31merror\033[0m" if colour else "error"
    for problem in problems:
        print(f"{label}: {problem}", file=out)
