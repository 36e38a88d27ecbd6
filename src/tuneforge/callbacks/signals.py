"""SIGINT and SIGTERM: finish the optimizer step, save, stop; a second signal leaves at once."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.console import say

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StopSignals(pl.Callback):
    """Turns a signal into a clean stop with a checkpoint to resume from."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals; Lightning's own SIGTERM handler stops without saving."""
        for number in HANDLED:
            self._before[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        say(f"{signal.Signals(number).name}: finishing this step and saving; once more to leave at once")
        for other in HANDLED:
            signal.signal(other, signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step: save and stop."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.received = self._agreed(trainer)
        if self.received is None:
            return
        trainer.should_stop = True
        # Lightning evaluates once more whenever it stops early. One that is due anyway belongs to the run; any other
        # would cost the time that a cluster grants between the signal and the kill.
        assert isinstance(trainer.val_check_batch, int)
        if (batch_idx + 1) % trainer.val_check_batch:
            trainer.limit_val_batches = 0
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Checkpoints):
                callback.save(trainer)

    def _agreed(self, trainer: pl.Trainer) -> int | None:
        """The signal that any process got: they stop at the same step, or those that go on would wait for ever."""
        if trainer.world_size == 1:
            return self.received
        flag = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return int(flag) or None

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
