"""Answers of the model to a few eval prompts, before and after training, for reading."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np

from tuneforge.data.encode import IGNORE, Document
from tuneforge.data.labelled import LabelledRows
from tuneforge.generation import Continuation, continuation, stop_ids
from tuneforge.sharding import Sharding


@dataclass
class Sample:
    """One prompt with the answer of the data and that of the model."""

    prompt: str
    wanted: str
    answer: str


@dataclass(frozen=True)
class Answer:
    """The same in tokens."""

    sample: Sample
    written: Continuation
    wanted: list[int]


class SampleAnswers(pl.Callback):
    """Greedy answers, or predicted labels, at the end of an evaluation that stands outside of training."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []
        self.answers: list[Answer] = []
        """Where the model writes; on the process that did."""
        self.seconds = 0.0
        """That they took."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Generate, or predict."""
        context = pl_module.context
        if trainer.state.fn != "validate" or not writes(trainer):
            return
        if isinstance(context.eval_rows, LabelledRows):
            self.samples = _classified(pl_module, context.eval_rows, context.config.samples.num)
            return
        started = time.perf_counter()
        self.answers = answers(pl_module)
        self.seconds = time.perf_counter() - started
        self.samples = [answer.sample for answer in self.answers]

    def take(self) -> list[dict[str, str]]:
        """The samples of the last evaluation, as plain objects."""
        return [asdict(s) for s in self.samples]


def writes(trainer: pl.Trainer) -> bool:
    """Whether this process generates: the first one; where each has a part of the weights, all of them together."""
    return trainer.is_global_zero or isinstance(trainer.strategy, Sharding)


def answers(module: Any) -> list[Answer]:
    """What the model writes after the prompts of `samples.*`: the same ones throughout a run."""
    context = module.context
    tokenizer, settings = context.tokenizer, context.config.samples
    found = []
    for prompt, wanted in sample_prompts(context.eval_rows.documents, settings.num):
        written = continuation(module, prompt, settings.max_new_tokens)
        answer = wanted[:-1] if int(wanted[-1]) in stop_ids(context.generation) else wanted
        texts = [tokenizer.decode(t, skip_special_tokens=True).strip() for t in (prompt, answer, written.text)]
        found.append(Answer(Sample(*texts), written, [int(t) for t in wanted]))
    return found


def _classified(module: Any, rows: LabelledRows, count: int) -> list[Sample]:
    """Texts with the label of the data and the predicted one."""
    documents = [rows.documents[i] for i in _spread(len(rows.documents), count)]
    texts = [module.context.tokenizer.decode(d.input_ids, skip_special_tokens=True).strip() for d in documents]
    wanted = [module.named(d.labels) for d in documents]
    return [Sample(*one) for one in zip(texts, wanted, module.predict(documents), strict=True)]


def _spread(length: int, count: int) -> list[int]:
    """Up to `count` places of `length`, evenly apart."""
    places = np.linspace(0, length - 1, min(count, length)).astype(int).tolist() if length else []
    return list(dict.fromkeys(places))


def sample_prompts(documents: Sequence[Document], count: int) -> list[tuple[Any, Any]]:
    """(prompt ids, wanted ids) of up to `count` documents, spread evenly over the split."""
    found = []
    for i in _spread(len(documents), count):
        supervised = np.flatnonzero(documents[i].labels != IGNORE)
        start = int(supervised[0])
        if start == 0:
            start = min(16, len(documents[i].input_ids) // 2)  # raw text: the model goes on from its beginning
        # Up to the end-of-turn token: templates write a newline after it, which no answer should stop at.
        end = int(supervised[-1]) + 1
        if start:
            found.append((documents[i].input_ids[:start], documents[i].input_ids[start:end]))
    return found
