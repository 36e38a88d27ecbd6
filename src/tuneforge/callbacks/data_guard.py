"""Batches that teach nothing, or always the same: said while the run can still be mended."""

from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from tuneforge.callbacks.guard import Late, StepGuard, token_ids
from tuneforge.errors import Problem
from tuneforge.schema.types import NonNegative, PositiveFloat, PositiveInt
from tuneforge.steps import StepFacts

PRIME = 2_147_483_647


class DataGuard(StepGuard[tuple[int, Late]]):
    """Counts labels and compares batches as they pass."""

    name: ClassVar[str] = "data_guard"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop"] = "warn",
        identical: PositiveInt = 3,
        drift: PositiveFloat = 2.0,
        window: PositiveInt = 20,
        min_first_loss: NonNegative = 0.02,
    ) -> None:
        """A finding is: a micro-batch without a label; `identical` steps on end with the batch of the step before;
        a mean share of labels over `window` steps that is `drift` times that of the first ones, or less than
        one such part; a first train loss under `min_first_loss` or under a tenth of the base's eval loss.
        """
        super().__init__(action)
        self.identical = identical
        self.drift = drift
        self.window = window
        self.min_first_loss = min_first_loss
        self._base: float | None = None
        self._hash: Tensor | None = None
        self._empty: Tensor | None = None
        self._before: Tensor | None = None
        self._labels: Tensor | None = None
        self._places = 0
        self._same = 0
        self._first: list[float] = []
        self._recent: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        """With the shares of labels seen."""
        return {**super().state_dict(), "same": self._same, "first": self._first, "recent": self._recent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._same, self._first, self._recent = state_dict["same"], state_dict["first"], state_dict["recent"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The base's eval loss, for the first train loss to be compared with."""
        if trainer.state.fn != "fit":
            self._base = float(trainer.callback_metrics["eval/loss"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ask to be told of each step."""
        super().on_fit_start(trainer, pl_module)
        self._trainer = trainer

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Put the micro-batch's labels and a hash of its tokens to the step's, on the device."""
        if not self.on:
            return
        labels = pl_module.count(batch)
        tokens = token_ids(batch)
        digest = sum((_hash(t) for t in tokens), torch.zeros((), dtype=torch.int64, device=labels.device))
        empty = (labels == 0).double()
        self._labels = labels if self._labels is None else self._labels + labels
        self._empty = empty if self._empty is None else self._empty + empty
        # The order of micro-batches counts as well.
        self._hash = digest if self._hash is None else (self._hash * 31 + digest) % PRIME
        self._places += sum(t.numel() for t in tokens)

    def watch(self, facts: StepFacts, optimizer: torch.optim.Optimizer) -> None:
        """What the step's batches were, over all processes."""
        assert self._labels is not None
        assert self._empty is not None
        assert self._hash is not None
        same = torch.zeros_like(self._empty) if self._before is None else (self._hash == self._before).double()
        places = torch.full_like(same, self._places)
        numbers = torch.stack([self._empty, same, self._labels.double(), places, torch.ones_like(same)])
        numbers = self._trainer.strategy.reduce(numbers, reduce_op="sum")
        self.keep((facts.step, Late(torch.cat([numbers, facts.loss.double()[None]]))))
        self._before = self._hash
        self._hash = self._empty = self._labels = None
        self._places = 0

    def judge(self, trainer: pl.Trainer, pl_module: Any, seen: tuple[int, Late]) -> None:
        """Look at one step."""
        step, (empty, same, labels, places, processes, loss) = seen[0], seen[1].read()
        if step == 1:
            self._judge_first(trainer, pl_module, loss)
        settled = pl_module.context.settled
        # A step of fewer sequences than passes leaves some passes without a row.
        empty -= max(0, settled.accumulate * settled.world_size - settled.rows_per_step)
        if empty > 0:
            message = f"{empty:.0f} micro-batches of step {step} have no label: nothing is learnt from them"
            fix = "look at the rows' answers, at data.train_on and data.max_length, or at the format that reads them"
            self.act(trainer, Problem("no-labels", message, self.path, fix=fix), step=step)
        self._same = self._same + 1 if same == processes else 0
        if self._same == self.identical:
            rows = len(pl_module.context.train_rows)
            message = f"steps {step - self.identical} to {step} had the very same batch; the train side has {rows} rows"
            fix = "give more rows, or a smaller batch.effective; with a sampler or format of your own, look at that"
            self.act(trainer, Problem("identical-batches", message, self.path, fix=fix), step=step)
        self._judge_drift(trainer, step, labels / max(1.0, places))

    def _judge_first(self, trainer: pl.Trainer, pl_module: Any, loss: float) -> None:
        share = "" if self._base is None else f"; the eval loss of the base is {self._base:.4g}"
        if loss < max(self.min_first_loss, 0.1 * (self._base or 0.0)):
            message = f"the train loss of the first step is {loss:.4g}, before anything was learnt{share}"
            fix = (
                "the model knows these rows (model.adapter, or an earlier run), or the answers stand in the prompts: "
                "read some rows, and the mask (data.train_on)"
            )
            self.act(trainer, Problem("low-first-loss", message, self.path, fix=fix), step=1)

    def _judge_drift(self, trainer: pl.Trainer, step: int, share: float) -> None:
        if len(self._first) < self.window:
            self._first.append(share)
            return
        self._recent = [*self._recent, share][-self.window :]
        before, now = (sum(side) / len(side) for side in (self._first, self._recent))
        drifted = len(self._recent) == self.window and not before / self.drift <= now <= before * self.drift
        if drifted and "label-drift" not in {e["code"] for e in self.events}:
            message = f"the share of supervised tokens went from {before:.1%} to {now:.1%} by step {step}"
            fix = "rows of different kinds come one after another: mix them in the file, or look at data.max_length"
            self.act(trainer, Problem("label-drift", message, self.path, fix=fix), step=step)


def _hash(tokens: Tensor) -> Tensor:
    """A number that changes with any token and with their order; shape []."""
    flat = tokens.flatten().to(torch.int64) + 1
    weights = torch.arange(1, len(flat) + 1, device=flat.device) * 2_654_435_761 % PRIME
    return (flat * weights % PRIME).sum() % PRIME
