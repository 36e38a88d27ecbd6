"""What guards do with the model beside training it: in eval mode, without gradients, and within a share of the time."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch

from tuneforge.callbacks.guard import agreed


@contextmanager
def evaluating(trainer: pl.Trainer, pl_module: Any) -> Iterator[None]:
    """Within, the model computes as in an evaluation."""
    awake = pl_module.training
    pl_module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield
    finally:
        pl_module.train(awake)


class Pace:
    """Keeps what a guard does in training within a share of training's time; resumed runs go on counting."""

    def __init__(self, max_share: float) -> None:
        """1: no limit."""
        self.max_share = max_share
        self.cost = 0.0
        """Seconds that it took the last time."""
        self._spent = 0.0
        self._before = 0.0
        self._since: float | None = None

    def state(self) -> dict[str, float]:
        """For a checkpoint."""
        return {"cost": self.cost, "spent": self._spent, "elapsed": self.elapsed}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take back what `state` gave."""
        self.cost, self._spent, self._before = state["cost"], state["spent"], state["elapsed"]

    def start(self) -> None:
        """Training begins."""
        self._since = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @property
    def share(self) -> float:
        """Of training's time so far."""
        return self._spent / max(self.elapsed, 1e-9)

    def affords(self, trainer: pl.Trainer) -> bool:
        """Whether once more stays within the share; the same on all processes, which all ask."""
        over = self.max_share < 1 and self._spent + self.cost > self.max_share * self.elapsed
        return not agreed(trainer, over)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """What lies within costs time: of training, where that has begun."""
        started = time.perf_counter()
        yield
        self.cost = time.perf_counter() - started
        if self._since is not None:
            self._spent += self.cost

    def stop(self) -> None:
        """Training has ended."""
        self._before, self._since = self.elapsed, None
