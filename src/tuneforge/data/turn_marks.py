"""What a chat template writes around an answer, found by rendering a conversation of placeholders."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneforge.data.rendering import ROW_CODES, apply_template
from tuneforge.errors import TuneforgeError

PLACEHOLDER = "Zqxj"
"""Stands for an answer. Plain letters: templates look for tags such as `<think>` in answers."""


@dataclass(frozen=True, slots=True)
class TurnMarks:
    """The text and tokens around an answer; empty where the tokenizer has no template, or it renders no plain chat."""

    generation_prompt: str = ""
    """Text that asks for an answer, such as `<|im_start|>assistant\\n`."""
    end: str = ""
    """Text between an answer and the whitespace after it, such as `<|im_end|>`."""
    inner_end: str = ""
    """The part of `end` that is written where turns follow; some templates end the whole chat in EOS too."""
    end_ids: tuple[int, ...] = ()
    """Tokens of `end` at which generation must stop; empty where the end is ordinary text."""
    trims: bool = True
    """The template strips whitespace around an answer."""
    always_prompts: bool = False
    """The template asks for another answer at the end of every chat, whether it is told to or not."""


def turn_marks(tokenizer: PreTrainedTokenizerBase) -> TurnMarks:
    """The marks of the tokenizer's template."""
    if not tokenizer.chat_template:
        return TurnMarks()
    user = {"role": "user", "content": "Hi"}
    for before in ([user], [{"role": "system", "content": "Hi"}, user]):
        try:
            asked, prompted = (apply_template(tokenizer, before, "", generate=g) for g in (False, True))
            answered = apply_template(tokenizer, [*before, _answer(PLACEHOLDER)], "")
            spaced = apply_template(tokenizer, [*before, _answer(f" {PLACEHOLDER} ")], "")
        except TuneforgeError as error:
            if error.problems[0].code not in ROW_CODES:
                raise
            continue  # a template of another kind of conversation; its rows are judged one by one
        if answered.count(PLACEHOLDER) != 1:
            return TurnMarks()
        end = answered.partition(PLACEHOLDER)[2].strip()
        inner = _inner_end(tokenizer, [*before, _answer(PLACEHOLDER), user], end)
        return TurnMarks(
            generation_prompt=prompted.removeprefix(asked) if prompted.startswith(asked) else "",
            end=end,
            inner_end=inner,
            end_ids=tuple(_end_ids(tokenizer, end)),
            trims=spaced == answered,
            always_prompts=asked == prompted and _prompts_after(asked, answered, inner, end),
        )
    return TurnMarks()


def _answer(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def _prompts_after(asked: str, answered: str, inner: str, end: str) -> bool:
    """Whether what asks for an answer also follows a given one, and does not where another turn follows."""
    header = answered.partition(PLACEHOLDER)[0].rstrip()
    ends = zip(reversed(asked.rstrip()), reversed(answered.rstrip()), strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
    return inner != end and length > 0 and header.endswith(asked.rstrip()[-length:])


def _inner_end(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], end: str) -> str:
    """What the end of a chat and that of a turn within it have in common, in whole tokens."""
    try:
        after = apply_template(tokenizer, messages, "").rpartition(PLACEHOLDER)[2].lstrip()
    except TuneforgeError as error:
        if error.problems[0].code not in ROW_CODES:
            raise
        return end
    if after.startswith(end) or not tokenizer.is_fast:
        return end
    last, inner = (tokenizer(t, add_special_tokens=False, return_offsets_mapping=True) for t in (end, after))
    same = 0
    for a, b, (_, stop) in zip(last["input_ids"], inner["input_ids"], last["offset_mapping"], strict=False):
        if a != b:
            break
        same = stop
    return end[:same].rstrip()


def _end_ids(tokenizer: PreTrainedTokenizerBase, end: str) -> Iterator[int]:
    """Special tokens of a turn's end; else its added tokens; else the one token that it is."""
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    added = tokenizer.added_tokens_decoder
    for wanted in (
        [i for i in ids if i in added and added[i].special],
        [i for i in ids if i in added],
        ids if len(ids) == 1 else [],
    ):
        if wanted:
            yield from dict.fromkeys(wanted)
            return


def end_texts(tokenizer: PreTrainedTokenizerBase, marks: TurnMarks) -> tuple[str, ...]:
    """Texts of the tokens that end an answer: an answer of the data that ends in one gets no second one."""
    added = tokenizer.added_tokens_decoder
    return tuple(str(added[i]) for i in dict.fromkeys([tokenizer.eos_token_id, *marks.end_ids]) if i in added)


def control_tokens(tokenizer: PreTrainedTokenizerBase, marks: TurnMarks) -> re.Pattern[str] | None:
    """Matches the texts that become control tokens: special ones, and those that open or end a turn.

    Other added tokens (`<think>`, `<table>`, runs of spaces) are ordinary text to write.
    """
    added = {str(t): t for t in tokenizer.added_tokens_decoder.values()}
    found = {text for text, token in added.items() if token.special}
    found |= {text for text in added if text in marks.end and not text.isspace()}
    opening = [text for text in added if marks.generation_prompt.startswith(text) and not text.isspace()]
    found |= set(opening)
    longest_first = sorted((text for text in found if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
