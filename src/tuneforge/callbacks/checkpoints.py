"""Saves after each evaluation; keeps the best by eval loss and the newest to resume from."""

import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from tuneforge.schema.types import PositiveInt


class Checkpoints(pl.Callback):
    """Checkpoints named by step, with the eval loss they were saved at."""

    def __init__(self, *, monitor: str = "eval/loss", keep_best: PositiveInt = 1, keep_last: PositiveInt = 1) -> None:
        """Keep the `keep_best` lowest by `monitor` and the `keep_last` newest; others are removed."""
        self.monitor = monitor
        self.keep_best = keep_best
        self.keep_last = keep_last
        self.scores: dict[int, float] = {}
        """Step -> monitored value, of the checkpoints on disk."""

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoints there are, so that a resumed run knows the best of before."""
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.scores = {int(k): float(v) for k, v in state_dict["scores"].items()}

    @property
    def best_step(self) -> int | None:
        """Step of the best checkpoint; the earlier of equals."""
        return min(self.scores, key=lambda s: (self.scores[s], s)) if self.scores else None

    def path(self, trainer: pl.Trainer, step: int) -> Path:
        """File of the checkpoint of a step."""
        return Path(trainer.default_root_dir) / "checkpoints" / f"step-{step:08d}.ckpt"

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the evaluation was part of training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.save(trainer, float(trainer.callback_metrics[self.monitor]))

    def save(self, trainer: pl.Trainer, score: float = math.inf) -> None:
        """Save the present step and prune. Without a score the weights were not evaluated, and are never the best."""
        step = trainer.global_step
        self.scores[step] = min(score, self.scores.get(step, math.inf))
        trainer.save_checkpoint(self.path(trainer, step), weights_only=False)
        ranked = sorted(self.scores, key=lambda s: (self.scores[s], s))
        keep = {*ranked[: self.keep_best], *sorted(self.scores)[-self.keep_last :]}
        for stale in set(self.scores) - keep:
            del self.scores[stale]
            trainer.strategy.remove_checkpoint(self.path(trainer, stale))
