"""Saves after each evaluation; keeps the best by a measure of it and the newest to resume from."""

import math
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl

from tuneforge.artifacts import whole
from tuneforge.artifacts.background import Background
from tuneforge.artifacts.room import too_large_to_gather
from tuneforge.callbacks.guard import guards
from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError, did_you_mean
from tuneforge.schema.types import PositiveInt
from tuneforge.sharding import SavingParts
from tuneforge.world import is_main_process


class Checkpoints(pl.Callback):
    """Checkpoints named by step, with the eval loss they were saved at."""

    def __init__(
        self,
        *,
        monitor: str = "eval/loss",
        mode: Literal["min", "max"] = "min",
        keep_best: PositiveInt = 1,
        keep_last: PositiveInt = 1,
        asynchronous: bool = True,
        sharded: bool | Literal["auto"] = "auto",
        on_error: Literal["stop", "warn"] = "stop",
    ) -> None:
        """Keep the `keep_best` best by `monitor` (`mode`: the lowest or the highest) and the `keep_last` newest.

        `asynchronous` writes a copy in host memory while training goes on. With `sharded` each process writes the part
        that it holds, under a strategy that splits weights; auto: where a whole checkpoint is too much for one host. A
        checkpoint that cannot be written stops the run, or with `on_error=warn` is told and left out.
        """
        self.monitor = monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.keep_best = keep_best
        self.keep_last = keep_last
        self.sharded = sharded
        self.on_error = on_error
        self.background = Background(asynchronous)
        """Where this process writes."""
        self.scores: dict[int, float] = {}
        """Step -> monitored value (its negative with `mode=max`: less is better), of the checkpoints on disk."""
        self._pruned: dict[int, float] = {}
        """Those that the last save was to replace; still there where it failed."""

    def decide_form(self, trainer: pl.Trainer, checkpoint: int) -> bool:
        """Whether each process writes its part, given the bytes of a whole checkpoint. Called by all processes."""
        strategy = trainer.strategy
        if not isinstance(strategy, SavingParts):
            if self.sharded is True:
                why = "has no effect in this run: its strategy writes checkpoints whole, and strategy=fsdp in parts"
                warn(Problem("no-effect", why, "callbacks.checkpoints.sharded"))
            return False
        wanted = too_large_to_gather(checkpoint) if self.sharded == "auto" else self.sharded
        strategy.saves_parts = trainer.strategy.broadcast(wanted)  # hosts may differ in memory
        return strategy.saves_parts

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoints there are, so that a resumed run knows the best of before."""
        return {"scores": dict(self.scores)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.scores = {int(k): float(v) for k, v in state_dict["scores"].items()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """The last batch of a run that is now to go further is not the last any more; Lightning would stop there."""
        if checkpoint["global_step"] < trainer.max_steps:
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def ranked(self) -> list[int]:
        """Steps from the best on; the earlier of equals first, those that were not evaluated last."""
        return sorted(self.scores, key=lambda s: (self.scores[s], s))

    @property
    def has_best(self) -> bool:
        """Whether any checkpoint was saved with a measure that is a number."""
        return any(score < math.inf for score in self.scores.values())

    def best(self, trainer: pl.Trainer) -> Path | None:
        """The best checkpoint that is whole, None where there is none; of the first process, which writes them."""
        for step in (s for s in self.ranked() if self.scores[s] < math.inf):
            path = self.path(trainer, step)
            wrong = whole.damage(path)
            if not wrong:
                return path
            warn(f"{path}, the best checkpoint, is passed over: {wrong}")
        return None

    def path(self, trainer: pl.Trainer, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return whole.path_of(Path(trainer.default_root_dir) / "checkpoints", step)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take away checkpoints of steps that this run will do again: it may differ from them in what may change."""
        if is_main_process():
            for checkpoint in whole.found(self.path(trainer, 0).parent):
                if whole.step_of(checkpoint) > trainer.global_step:
                    whole.remove(checkpoint)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where the evaluation was part of training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            score = self.sign * measured(trainer, self.monitor, "callbacks.checkpoints")
            disowned = any(guard.disowns for guard in guards(trainer).values())
            self.save(trainer, math.inf if disowned else score)

    def save(self, trainer: pl.Trainer, score: float = math.inf) -> None:
        """Save the present step and prune. Without a score the weights were not evaluated, and are never the best."""
        self.wait(trainer)
        for guard in guards(trainer).values():
            guard.catch_up(trainer, trainer.lightning_module)
        step = trainer.global_step
        self.scores[step] = min(math.inf if math.isnan(score) else score, self.scores.get(step, math.inf))
        trainer.save_checkpoint(self.path(trainer, step), weights_only=False)
        keep = {*self.ranked()[: self.keep_best], *sorted(self.scores)[-self.keep_last :]}
        self._pruned = {s: self.scores.pop(s) for s in set(self.scores) - keep}
        for stale in self._pruned:
            trainer.strategy.remove_checkpoint(self.path(trainer, stale))
        self._told(trainer, wait=False)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Tell of a write that failed since."""
        self._told(trainer, wait=False)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training has not ended before its last checkpoint is on the disk."""
        self.wait(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """What is being written is finished; a failure of it must not hide the exception."""
        try:
            self.background.wait()
        except TuneforgeError as error:
            warn(error.problems[0])
        except RuntimeError as error:  # another process is gone, before it has written its part
            warn(f"the last checkpoint was not finished: {error}")

    def wait(self, trainer: pl.Trainer) -> None:
        """Return when what was saved is on the disk. Before any checkpoint is read, this must be called.

        Raises:
            TuneforgeError: it could not be written, and `on_error` is stop.
        """
        self._told(trainer, wait=True)

    def _told(self, trainer: pl.Trainer, *, wait: bool) -> None:
        try:
            self.background.wait() if wait else self.background.check()
        except TuneforgeError as error:
            if self.on_error == "stop":
                raise
            warn(error.problems[0])
            there = {**self._pruned, **self.scores}
            self.scores = {s: v for s, v in there.items() if self.path(trainer, s).is_dir()}


def measured(trainer: pl.Trainer, monitor: str, path: str) -> float:
    """What the last evaluation measured under this name; `path` is the node that asks.

    Raises:
        TuneforgeError: it measured no such thing.
    """
    if monitor not in trainer.callback_metrics:
        known = [k for k in trainer.callback_metrics if k.startswith("eval/")]
        message = f"is {monitor}, and the evaluation of this run measures no such thing"
        raise TuneforgeError("unknown-measure", message, path=f"{path}.monitor", fix=did_you_mean(monitor, known))
    return float(trainer.callback_metrics[monitor])
