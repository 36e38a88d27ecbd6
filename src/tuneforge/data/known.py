"""What the bundled model knows, as rows to score a model on: text of its training, and questions it can answer.

All of it is of the side that it was trained on; `data=pydoc` asks about the same library in another form.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from functools import cache

from tuneforge.data.rows import Row
from tuneforge.data.stdlib import Symbol, is_held_out, symbols, topics

TEXTS = 16
"""Beginnings of chapters of the language reference, the longest ones."""
BEGINNING = 4000
"""Characters: more than a row has room for, so that no end is asked for where there is none."""
QUESTIONS = 64
"""Of each kind."""
CHOICES = 4


@cache
def known() -> dict[str, tuple[Row, ...]]:
    """Task -> rows; the same for the same Python release. By chance one choice in four is right.

    reference: text of the language reference. words: in which order the words of a description make sense. parameters:
    which ones a signature has, as a page of the documentation lists them again.
    """
    found = [s for s in symbols() if not is_held_out(s.module) and s.kind in ("function", "method") and _first(s)]
    found.sort(key=lambda s: hashlib.sha256(s.dotted.encode()).digest())
    chapters = sorted(topics(), key=len, reverse=True)[:TEXTS]
    return {
        "reference": tuple(Row({"text": t[:BEGINNING]}, origin=t.partition("\n")[0]) for t in chapters),
        "words": tuple(_words(found[:QUESTIONS])),
        "parameters": tuple(_parameters([s for s in found if _names(s)])),
    }


def _words(found: Sequence[Symbol]) -> Iterator[Row]:
    for symbol in found:
        words = _first(symbol).split()
        draw = random.Random(symbol.dotted)  # noqa: S311  not a secret
        orders: dict[str, None] = {}
        while len(orders) < CHOICES - 1:
            mixed = " ".join(draw.sample(words, len(words)))
            if mixed != " ".join(words):
                orders[mixed] = None
        yield _row(symbol, f"{symbol.signature}\n   ", " ".join(words), list(orders))


def _parameters(found: Sequence[Symbol]) -> Iterator[Row]:
    """The wrong choices are those of other symbols."""
    others = list(dict.fromkeys(_names(s) for s in found[QUESTIONS:]))
    for i, symbol in enumerate(found[:QUESTIONS]):
        own = _names(symbol)
        wrong = [names for names in others[i * CHOICES : (i + 1) * CHOICES] if names != own][: CHOICES - 1]
        page = f"{symbol.signature}\n    {_first(symbol)}\n    Parameters of {symbol.name}:"
        yield _row(symbol, page, own, wrong)


def _row(symbol: Symbol, question: str, right: str, wrong: list[str]) -> Row:
    place = len(symbol.dotted) % CHOICES
    fields = {"question": question, "choices": [*wrong[:place], right, *wrong[place:]], "answer": place}
    return Row(fields, origin=symbol.dotted)


def _first(symbol: Symbol) -> str:
    """The first line of the docstring, where it is a plain one of a usual length under a signature of one."""
    line = symbol.doc.partition("\n")[0].strip()
    whole = 24 <= len(line) <= 72 and line.isascii() and line.endswith(".")
    return line if whole and len(symbol.signature) <= 100 else ""


def _names(symbol: Symbol) -> str:
    names = [p.name for p in symbol.parameters]
    return ", ".join(names) if 2 <= len(names) <= 4 else ""
