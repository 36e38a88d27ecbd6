"""Ends a run when a measure has not improved for a while: a normal end."""

import math
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl

from tuneforge.callbacks.checkpoints import measured
from tuneforge.callbacks.guard import Guard
from tuneforge.console import say
from tuneforge.schema.types import NonNegative, PositiveInt


class EarlyStopping(Guard):
    """Off unless `patience` is given. Its end is no finding, and the exit code is 0."""

    name: ClassVar[str] = "early_stopping"

    def __init__(
        self,
        *,
        monitor: str = "eval/loss",
        mode: Literal["min", "max"] = "min",
        patience: PositiveInt | None = None,
        min_delta: NonNegative = 0.0,
    ) -> None:
        """End the run after `patience` evaluations in which `monitor` was not better by more than `min_delta`."""
        super().__init__("none" if patience is None else "stop")
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.patience = patience
        self.min_delta = min_delta
        self._best = math.inf
        self._waited = 0

    def state_dict(self) -> dict[str, Any]:
        """With the best so far."""
        return {**super().state_dict(), "best": self._best, "waited": self._waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._best, self._waited = float(state_dict["best"]), int(state_dict["waited"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare with the best."""
        if not self.on or trainer.state.fn != "fit":
            return
        value = self.sign * measured(trainer, self.monitor, self.path)
        if value < self._best - self.min_delta:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        self.gauges["waited"] = self._waited
        if self.patience is not None and self._waited >= self.patience and trainer.global_step < trainer.max_steps:
            trainer.should_stop = True
            message = (
                f"stopped early at step {trainer.global_step} of {trainer.max_steps}: {self.monitor} has not improved "
                f"on {self.sign * self._best:.4f} by more than {self.min_delta:g} in {self._waited} evaluations"
            )
            self.events.append(
                {"step": trainer.global_step, "code": "", "did": "ended the run", "message": message, "fix": ""}
            )
            say(message)
