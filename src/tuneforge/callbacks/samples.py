"""Answers of the model to a few eval prompts, before and after training, for reading."""

from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl
import numpy as np

from tuneforge.data.encode import IGNORE, Document
from tuneforge.generation import generate


@dataclass
class Sample:
    """One prompt with the answer of the data and that of the model."""

    prompt: str
    wanted: str
    answer: str


class SampleAnswers(pl.Callback):
    """Greedy answers at the end of an evaluation that stands outside of training."""

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Generate on the first process."""
        context = pl_module.context
        if trainer.state.fn != "validate" or not trainer.is_global_zero:
            return
        prompts = sample_prompts(context.eval_rows.documents, context.config.samples.num)
        self.samples = [self._answer(pl_module, *prompt) for prompt in prompts]

    def _answer(self, module: Any, prompt: Any, wanted: Any) -> Sample:
        tokenizer, settings = module.context.tokenizer, module.context.config.samples
        (answer,) = generate(module, [prompt], settings.max_new_tokens, stop=[int(wanted[-1])])
        texts = [tokenizer.decode(t, skip_special_tokens=True).strip() for t in (prompt, wanted)]
        return Sample(texts[0], texts[1], answer)

    def take(self) -> list[dict[str, str]]:
        """The samples of the last evaluation, as plain objects."""
        return [asdict(s) for s in self.samples]


def sample_prompts(documents: list[Document], count: int) -> list[tuple[Any, Any]]:
    """(prompt ids, wanted ids) of up to `count` documents, spread evenly over the split."""
    found = []
    spread = np.linspace(0, len(documents) - 1, min(count, len(documents))).astype(int).tolist() if documents else []
    for i in dict.fromkeys(spread):
        supervised = np.flatnonzero(documents[i].labels != IGNORE)
        start = int(supervised[0])
        if start == 0:
            start = min(16, len(documents[i].input_ids) // 2)  # raw text: the model goes on from its beginning
        # Up to the end-of-turn token: templates write a newline after it, which no answer should stop at.
        end = int(supervised[-1]) + 1
        if start:
            found.append((documents[i].input_ids[:start], documents[i].input_ids[start:end]))
    return found
