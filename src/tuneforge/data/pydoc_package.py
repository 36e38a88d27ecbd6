"""`data=pydoc_package`: which package of the standard library a documented callable belongs to, for classification."""

import hashlib

from tuneforge.data.rows import Row
from tuneforge.data.stdlib import Symbol, package, symbols

PACKAGES = ("asyncio", "decimal", "email", "logging", "unittest", "xml")
"""Six with at least 160 documented callables each in Python 3.11 to 3.13 (tkinter has more, and is missing on some
machines). One stands for what shares its text too: `asyncio` for `threading` and `queue`."""

AT_MOST = 160
"""Rows of a package; the surplus is left out by hash, so that no package is the answer to most."""

LONGEST = 200
"""Characters of a signature and docstring: what says the most stands first, and short rows are quick on a CPU."""


def pydoc_package() -> list[Row]:
    """Signature and docstring of functions, methods and classes, labelled with their package.

    The dotted name is left out. Each is held out by itself: the question is to which of the packages, all of them
    known from other callables, a new one belongs.
    """
    rows: list[Row] = []
    for name in PACKAGES:
        own = [s for s in symbols() if package(s.module) == name and s.kind in ("function", "method", "class")]
        kept = set(sorted(own, key=lambda s: _digest(s.dotted))[:AT_MOST])
        rows += [_row(s, name) for s in own if s in kept]
    return rows


def _row(symbol: Symbol, label: str) -> Row:
    text = f"{symbol.signature}\n\n{symbol.doc.strip()}"[:LONGEST].rstrip()
    return Row({"text": text, "label": label}, origin=symbol.dotted)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
