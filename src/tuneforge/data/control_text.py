"""Names of control tokens that the data holds as text: `<|im_end|>` in a question would end the turn there."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from tuneforge.data.formats import Example

CUT = "\U000f5a12"
"""Put into a name to take it apart until the text becomes tokens; a character of a private plane."""


def texts_of(example: Example) -> list[str]:
    """All texts of an example."""
    return [*(m["content"] for m in example.messages), example.prompt, example.completion, example.text]


def map_texts(example: Example, change: Callable[[str], str]) -> Example:
    """The example with each of its texts changed."""
    return replace(
        map_answers(example, change),
        messages=tuple({**m, "content": change(m["content"])} for m in example.messages),
        prompt=change(example.prompt),
    )


def map_answers(example: Example, change: Callable[[str], str]) -> Example:
    """The example with what the model is to write changed."""
    return replace(
        example,
        messages=tuple(
            {**m, "content": change(m["content"])} if m["role"] == "assistant" else m for m in example.messages
        ),
        completion=change(example.completion),
        text=change(example.text),
    )


def first_name(texts: Sequence[str], names: re.Pattern[str]) -> str:
    """The first name of a control token in the texts; "" where there is none."""
    return next((found.group() for text in texts if (found := names.search(text))), "")


def escape(text: str, names: re.Pattern[str]) -> str:
    """The text with a cut after the first character of each name, of those inside others too."""
    pieces, at = [], 0
    while (found := names.search(text, at)) is not None:
        pieces.append(text[at : found.start() + 1])
        at = found.start() + 1
    return CUT.join([*pieces, text[at:]])


def without_end(text: str, ends: Sequence[str]) -> str:
    """The text without the end-of-turn tokens that it ends in, and without whitespace between and after them."""
    while (bare := text.rstrip()).endswith(tuple(ends)):
        text = next(bare.removesuffix(end) for end in ends if bare.endswith(end))
    return text


def with_one_end(text: str, ends: Sequence[str], eos: str) -> str:
    """The text with one end: the first of those that it has, else EOS."""
    bare = without_end(text, ends)
    own = text[len(bare) :].strip()
    return bare + next((end for end in ends if own.startswith(end)), eos)
