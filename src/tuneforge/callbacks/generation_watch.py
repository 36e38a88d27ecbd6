"""What the model writes along the run: shown, measured, and a finding where it only repeats itself or never ends."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger

from tuneforge.callbacks.beside import Pace, evaluating
from tuneforge.callbacks.guard import Guard, Table, steps
from tuneforge.callbacks.samples import Answer, SampleAnswers, answers, writes
from tuneforge.errors import Problem
from tuneforge.masking import mask
from tuneforge.schema.types import Fraction, PositiveInt

LOOKS = 10
"""In a run, where no interval is given."""
AT_LEAST = 3
"""Prompts: of fewer, one odd answer would be a finding."""
MAX_SAMPLES = 30
"""Texts that run.json keeps, the newest."""


@dataclass(frozen=True)
class Measures:
    """Of several texts; all are shares."""

    repetition: float
    """4-grams of a text that stand in it before, mean over the texts (seq-rep-4 of arXiv 1908.04319)."""
    distinct_1: float
    """Different tokens of all texts, by the number of tokens (arXiv 1510.03055)."""
    distinct_2: float
    """The same of pairs."""
    endless: float | None = None
    """Texts that do not end, of those whose answer in the data does within `samples.max_new_tokens`; None: no such."""


def measured(texts: Sequence[Sequence[int]], endless: float | None = None) -> Measures:
    """Measures of texts given as tokens."""
    return Measures(
        repetition=sum(repetition(text) for text in texts) / max(1, len(texts)),
        distinct_1=_distinct(texts, 1),
        distinct_2=_distinct(texts, 2),
        endless=endless,
    )


def repetition(text: Sequence[int], n: int = 4) -> float:
    """1 - distinct n-grams / n-grams; 0 of a text that has none."""
    grams = _grams(text, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _distinct(texts: Sequence[Sequence[int]], n: int) -> float:
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / max(1, sum(map(len, texts)))


def _grams(text: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


class GenerationWatch(Guard):
    """Answers the prompts of `samples.*` every so often, and compares with the base's answers and with earlier ones."""

    name: ClassVar[str] = "generation_watch"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop"] = "warn",
        every_n_steps: PositiveInt | None = None,
        max_share: Fraction = 0.02,
        margin: Fraction = 0.4,
    ) -> None:
        """A finding is a share of repeated 4-grams, or of answers without an end, `margin` above the least seen so far.

        The base's own answers count among those, and the repetition of the data's answers is allowed for. Prompts are
        answered every `every_n_steps` steps (null: ten times a run) as long as that takes at most `max_share` of
        training's time (1: no limit); before and after training they are anyway.
        """
        super().__init__(action)
        self.every_n_steps = every_n_steps
        self.margin = margin
        self.pace = Pace(max_share)
        self.samples: list[dict[str, Any]] = []
        """Step, prompt and answer."""
        self._seen: dict[str, Measures] = {}
        """Of the base (before), along the run (last), and of the result (after)."""
        self._least: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """With what is compared."""
        seen = {moment: asdict(measures) for moment, measures in self._seen.items()}
        own = {"pace": self.pace.state(), "samples": self.samples, "seen": seen, "least": dict(self._least)}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self.pace.load_state(state_dict["pace"])
        self.samples, self._least = list(state_dict["samples"]), dict(state_dict["least"])
        self._seen = {moment: Measures(**found) for moment, found in state_dict["seen"].items()}

    def as_record(self) -> dict[str, Any]:
        """With the measures, and the newest texts."""
        record = super().as_record()
        if self.idle:
            return record | {"idle": self.idle}
        seen = {moment: asdict(measures) for moment, measures in self._seen.items()}
        return record | {"time_share": self.pace.share, "measures": seen, "samples": self.samples}

    def tables(self) -> list[Table]:
        """What was written along the run."""
        rows = [[f"{s['step']:,}", s["prompt"], s["answer"]] for s in self.samples]
        columns = ["step", "prompt", "answer"]
        return [Table("What it wrote along the run", columns, rows, ["step"], folded=True)] if rows else []

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Know whether there is anything to read."""
        if not pl_module.predicts_tokens:
            self.idle = "the objective predicts no tokens"
        elif pl_module.context.config.samples.num < AT_LEAST:
            self.idle = f"fewer than {AT_LEAST} prompts (samples.num)"

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Time begins."""
        self.pace.start()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Time ends."""
        self.pace.stop()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Outside of training, the samples of before and after are there already."""
        if not self.on or trainer.state.fn == "fit":
            return
        shown = next(c for c in trainer.callbacks if isinstance(c, SampleAnswers))  # type: ignore[attr-defined]
        if trainer.global_step == 0:
            self.pace.cost = trainer.strategy.broadcast(shown.seconds)
        self._judge(trainer, pl_module, shown.answers, "after" if trainer.global_step else "before")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimizer step: answer where it is time to; the last one's answers are those of the result."""
        every = self.every_n_steps or max(1, trainer.max_steps // LOOKS)
        due = self.on and steps(trainer, batch_idx) and trainer.global_step % every == 0
        if due and trainer.global_step < trainer.max_steps and self.pace.affords(trainer):
            found: list[Answer] = []
            with self.pace.timed(), evaluating(trainer, pl_module):
                if writes(trainer):
                    found = answers(pl_module)
            self._judge(trainer, pl_module, found, "last")
            self._show(trainer, found)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def _judge(self, trainer: pl.Trainer, pl_module: Any, found: Sequence[Answer], moment: str) -> None:
        """Compare what the first process measured; called by all of them."""
        at_most = pl_module.context.config.samples.max_new_tokens
        now, allowed = trainer.strategy.broadcast(_measures(found, at_most))
        shares = {"repetition": now.repetition} | ({} if now.endless is None else {"endless": now.endless})
        self.gauges |= {**shares, "distinct_1": now.distinct_1, "distinct_2": now.distinct_2}
        self._seen[moment] = now
        for name, share in shares.items():
            usual = max(self._least.get(name, share), allowed if name == "repetition" else 0.0)
            if share > usual + self.margin and self.refusal is None:
                self.act(trainer, self._problem(trainer, name, share, usual))
            self._least[name] = min(share, self._least.get(name, share))

    def _show(self, trainer: pl.Trainer, found: Sequence[Answer]) -> None:
        lines = [{"step": trainer.global_step, "prompt": a.sample.prompt, "answer": a.sample.answer} for a in found]
        self.samples = [*self.samples, *lines][-MAX_SAMPLES:]
        text = "\n\n".join(f"**{line['prompt']}**\n\n{line['answer']}" for line in lines)
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("generation_watch/samples", mask(text), trainer.global_step)

    def _problem(self, trainer: pl.Trainer, name: str, share: float, usual: float) -> Problem:
        module: Any = trainer.lightning_module
        config = module.context.config
        fix = (
            f"in this order: rows that repeat themselves; too high a rate (optim.lr={config.optim.lr / 2:.3g}) or too "
            "many epochs; a base that needs another template (model.chat_template)"
        )
        if name == "repetition":
            message = f"{share:.0%} of the 4-grams of what the model writes are repetitions, and {usual:.0%} were"
            return Problem("repeats-itself", f"step {trainer.global_step}: {message}", self.path, fix=fix)
        message = f"{share:.0%} of its answers do not end where the data's do, and {usual:.0%} did not"
        fix = "in this order: answers without an end-of-turn token (model.chat_template=plain); data.train_on; " + (
            f"answers cut at data.max_length; too high a rate (optim.lr={config.optim.lr / 2:.3g})"
        )
        return Problem("never-ends", f"step {trainer.global_step}: {message}", self.path, fix=fix)


def _measures(found: Sequence[Answer], at_most: int) -> tuple[Measures, float]:
    """Of what was written; and the repetition of the data's own answers, as far as they could be written."""
    ending = [a for a in found if len(a.wanted) <= at_most]
    endless = sum(not a.written.ended for a in ending) / len(ending) if ending else None
    wanted = measured([a.wanted[:at_most] for a in found])
    return measured([a.written.tokens for a in found], endless), wanted.repetition
