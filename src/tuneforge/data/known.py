"""What the bundled model knows, as questions to score a model on.

All of it is of the side that it was trained on; `data=pydoc` asks about the same library in another form. No text: the
likelihood of its tokens is halved by 40 steps of the default job, which does no harm to what the questions ask.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from tuneforge.data.rows import Row
from tuneforge.data.stdlib import Symbol, is_held_out, symbols, topics

QUESTIONS = 48
"""Of each kind."""
CHOICES = 4
_SENTENCE = re.compile(r"[A-Z][A-Za-z ,'\"()-]+\.")


@cache
def known() -> dict[str, tuple[Row, ...]]:
    """Task -> rows; the same for the same Python release. By chance one choice in four is right.

    In which order words make sense: of a docstring's first line after its signature, and of a sentence of the language
    reference after the one before.
    """
    found = [s for s in symbols() if not is_held_out(s.module) and s.kind in ("function", "method") and _first(s)]
    found.sort(key=lambda s: _digest(s.dotted))
    pairs = sorted(_sentences(), key=lambda pair: _digest(pair[1]))[:QUESTIONS]
    return {
        "descriptions": tuple(_order(f"{s.signature}\n   ", _first(s), s.dotted) for s in found[:QUESTIONS]),
        "reference": tuple(_order(before, sentence, "language reference") for before, sentence in pairs),
    }


def _order(question: str, text: str, origin: str) -> Row:
    """The wrong choices have two neighbouring words swapped: all words mixed up, every choice would be right."""
    words = text.split()
    places = sorted(range(len(words) - 1), key=lambda at: (words[at] == words[at + 1], _digest(f"{text} {at}")))
    swapped = [[*words[:at], words[at + 1], words[at], *words[at + 2 :]] for at in places[: CHOICES - 1]]
    return _row(question, " ".join(words), [" ".join(wrong) for wrong in swapped], origin)


def _row(question: str, right: str, wrong: list[str], origin: str) -> Row:
    place = _digest(right)[0] % CHOICES
    return Row({"question": question, "choices": [*wrong[:place], right, *wrong[place:]], "answer": place}, origin)


def _sentences() -> Iterator[tuple[str, str]]:
    """Two plain sentences of the language reference that follow each other; the second of a usual length."""
    for paragraph in "\n\n".join(topics()).split("\n\n"):
        whole = [part for part in re.split(r"(?<=\.) +", " ".join(paragraph.split())) if _SENTENCE.fullmatch(part)]
        yield from ((a, b) for a, b in pairwise(whole) if len(a) <= 120 and _is_usual(b))


def _first(symbol: Symbol) -> str:
    """The first line of the docstring, where it is a plain one of a usual length under a signature of one."""
    line = symbol.doc.partition("\n")[0].strip()
    whole = _is_usual(line) and line.isascii() and line.endswith(".")
    return line if whole and len(symbol.signature) <= 100 else ""


def _is_usual(text: str) -> bool:
    return 24 <= len(text) <= 72 and len(text.split()) > CHOICES


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
