"""Train loss falls and eval loss does not follow: said, or the end of the run."""

import math
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor

from tuneforge.callbacks.guard import Guard
from tuneforge.errors import Problem
from tuneforge.schema.types import PositiveFloat, PositiveInt
from tuneforge.steps import StepFacts


class OverfitGuard(Guard):
    """Looks at each evaluation: the gap of eval and train loss, and whether the one rises while the other falls."""

    name: ClassVar[str] = "overfit_guard"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop"] = "warn",
        gap: PositiveFloat = 0.2,
        patience: PositiveInt = 3,
    ) -> None:
        """A finding is, `patience` evaluations on end: an eval loss more than `gap` above the train loss, or one
        that rises while the train loss falls.

        The train loss is the mean since the last evaluation. Where eval rows were the harder ones before the first
        step, `gap` is on top of that. `stop` waits until the eval loss has stopped falling: a gap alone costs nothing.
        """
        super().__init__(action)
        self.gap = gap
        self.patience = patience
        self._sums: Tensor | None = None
        self._base: tuple[float | None, float | None] = (None, None)
        """Eval loss of the base, and train loss of the first step."""
        self._last: tuple[float, float] | None = None
        self._best = math.inf
        self._wide = 0
        self._rising = 0

    def state_dict(self) -> dict[str, Any]:
        """With what is compared, and the train losses since the last evaluation: a signal saves between two."""
        sums = None if self._sums is None else self._sums.tolist()
        own = {"base": list(self._base), "last": list(self._last) if self._last else None, "best": self._best}
        return {**super().state_dict(), **own, "sums": sums, "wide": self._wide, "rising": self._rising}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._sums = None if state_dict["sums"] is None else torch.tensor(state_dict["sums"], dtype=torch.float64)
        self._base = (state_dict["base"][0], state_dict["base"][1])
        self._last = tuple(state_dict["last"]) if state_dict["last"] else None
        self._best, self._wide, self._rising = state_dict["best"], state_dict["wide"], state_dict["rising"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ask to be told of each step."""
        if self.on:
            pl_module.watchers.append(self.watch)

    def watch(self, facts: StepFacts, optimizer: torch.optim.Optimizer) -> None:
        """Add up train losses, on the device; those that are not finite belong to the nan guard."""
        fine = torch.isfinite(facts.loss)
        one = torch.stack([torch.where(fine, facts.loss, 0.0).double(), fine.double()])
        self._sums = one if self._sums is None else self._sums.to(one.device) + one

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Compare."""
        if not self.on:
            return
        loss = float(trainer.callback_metrics["eval/loss"])
        if trainer.state.fn != "fit":
            self._base = (loss, None)
        elif self._sums is not None and float(self._sums[1]):
            train = float(self._sums[0] / self._sums[1])
            self._sums = None
            self._compare(trainer, loss, train)

    def _compare(self, trainer: pl.Trainer, loss: float, train: float) -> None:
        first = self._last is None
        if first and self._base[1] is None:
            self._base = (self._base[0], train)
        harder = self._harder()
        gap = loss / (train * harder) - 1
        improves = loss < self._best
        self._wide = self._wide + 1 if gap > self.gap else 0
        rises = self._last is not None and loss > self._last[0] and train < self._last[1]
        self._rising = self._rising + 1 if rises else 0
        self._last, self._best = (loss, train), min(loss, self._best)
        self.gauges |= {"gap": gap, "rising": self._rising}
        if max(self._wide, self._rising) >= self.patience and self.refusal is None:
            problem = self._problem(loss, train, gap)
            (self.found if improves else self.act)(trainer, problem)

    def _harder(self) -> float:
        """Eval loss over train loss before anything was learnt, where that is above 1."""
        base, first = self._base
        return max(1.0, base / first) if base and first else 1.0

    def _problem(self, loss: float, train: float, gap: float) -> Problem:
        seen = (
            f"rose {self._rising} times on end while the train loss fell"
            if self._rising >= self.patience
            else (f"was more than {self.gap:.0%} above the train loss {self._wide} times on end")
        )
        return Problem(
            "overfitting",
            f"the eval loss {seen}: now {loss:.4f} against {train:.4f} ({gap:+.0%}), at best {self._best:.4f}",
            self.path,
            fix="in this order: fewer epochs (trainer.max_epochs, or callbacks.early_stopping.patience=2); "
            "task_recipe.dropout=0.1; optim.weight_decay=0.1; a lower task_recipe.rank; more rows, or general ones "
            "among them (data.replay.fraction=0.2)",
        )
