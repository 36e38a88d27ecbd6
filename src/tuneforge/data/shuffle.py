"""A control: answers dealt to other prompts, so that only their form can be learnt."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tuneforge.data.formats import Example, Message
from tuneforge.errors import TuneforgeError


def shuffle_answers(examples: Sequence[Example], seed: int) -> list[Example]:
    """The examples with their last answers permuted, none keeping its own: form and vocabulary without the mapping.

    What a model still learns from these is format; what it learns more from the true ones is content.
    """
    if len(examples) < 2:
        raise TuneforgeError(
            "nothing-to-shuffle", "answers can be shuffled among 2 examples or more", path="data", fix="use more rows"
        )
    if all(example.labels is not None for example in examples):
        answers: list[Any] = [example.labels for example in examples]
        give: Callable[[Example, Any], Example] = lambda example, labels: replace(example, labels=labels)  # noqa: E731
    else:
        answers, give = [_answer(example) for example in examples], _with_answer
    generator = random.Random(seed)  # noqa: S311 - a reproducible control, no secret
    source = list(range(len(examples)))
    # Sattolo's shuffle: one cycle through all, so that no place keeps its own.
    for place in range(len(source) - 1, 0, -1):
        other = generator.randrange(place)
        source[place], source[other] = source[other], source[place]
    return [give(example, answers[i]) for example, i in zip(examples, source, strict=True)]


def _answer(example: Example) -> str:
    if example.messages:
        return example.messages[_last_assistant(example)]["content"]
    if not example.completion:
        fix = "use data.format=alpaca, chat or prompt_completion"
        raise TuneforgeError(
            "nothing-to-shuffle", f"{example.origin} has no answer to shuffle", path="data.format", fix=fix
        )
    return example.completion


def _with_answer(example: Example, answer: str) -> Example:
    if not example.messages:
        return replace(example, completion=answer)
    last = _last_assistant(example)
    turn: Message = {"role": "assistant", "content": answer}
    return replace(example, messages=(*example.messages[:last], turn, *example.messages[last + 1 :]))


def _last_assistant(example: Example) -> int:
    return max(i for i, message in enumerate(example.messages) if message["role"] == "assistant")
