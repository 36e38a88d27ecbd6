"""Names of control tokens that the data holds as text: `<|im_end|>` in a question would end the turn there."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tuneforge.console import say, warn
from tuneforge.data.formats import Example
from tuneforge.errors import Problem, TuneforgeError

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


def refuse_name(origin: str, name: str, policy: str, texts: Sequence[str]) -> None:
    """Refuse a row whose text names a control token, where the user asked for it or it cannot be escaped.

    Args:
        origin: the row.
        name: the control token.
        policy: `data.special_tokens_in_text`.
        texts: all of the row.

    Raises:
        TuneforgeError: it is refused.
    """
    if policy == "refuse":
        raise TuneforgeError(
            "special-tokens-in-text",
            f"{origin} holds {name!r} in its text, which becomes a control token",
            path="data.special_tokens_in_text",
            fix="correct the row, leave such rows out (data.on_bad=skip), or encode the name as plain text: "
            "data.special_tokens_in_text=escape",
        )
    if policy == "escape" and any(CUT in text for text in texts):
        raise TuneforgeError(
            "special-tokens-in-text",
            f"{origin} holds {name!r} and U+{ord(CUT):X} in its text, and the latter marks what is escaped",
            path="data.special_tokens_in_text",
            fix=f"remove U+{ord(CUT):X} from the row, or leave such rows out: data.on_bad=skip",
        )


def report_names(named: Mapping[str, str], rows: int, policy: str) -> None:
    """Print how many of `rows` rows name a control token (row -> token), and what becomes of it."""
    if not named:
        return
    origin, name = next(iter(named.items()))
    message = f"{len(named)} of {rows} rows hold control tokens as text ({name!r} in {origin} first)"
    if policy == "escape":
        say(f"{message}: encoded as plain text")
        return
    fix = "data.special_tokens_in_text=escape encodes them as plain text, refuse stops at them"
    path = "data.special_tokens_in_text"
    warn(Problem("special-tokens-in-text", f"{message}, and they become control tokens", path, fix=fix))
