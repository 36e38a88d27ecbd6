"""SIGINT, SIGTERM, SIGHUP and SIGUSR1: finish the optimizer step, save, stop; a second signal leaves at once."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch

from tuneforge.artifacts.folder import RunFolder, write_exit
from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.children import to_hear
from tuneforge.console import say, warn
from tuneforge.errors import EXIT_OF
from tuneforge.world import is_main_process


class Stopped(BaseException):
    """A signal that came while nothing was being trained. No `Exception`: nothing on its way may catch it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def heard() -> Iterator[None]:
    """Within, a signal raises `Stopped`; in the training loop, `StopSignals` takes over."""

    def leave(number: int, frame: FrameType | None) -> None:
        _next_one_kills()
        raise Stopped(number)

    before = {number: signal.signal(number, leave) for number in to_hear()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals(pl.Callback):
    """Turns a signal into a clean stop with a checkpoint to resume from."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}
        self._folder = RunFolder(Path())

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals; Lightning's own SIGTERM handler stops without saving."""
        self._folder = RunFolder(Path(trainer.default_root_dir))
        self._before = {number: signal.signal(number, self._receive) for number in to_hear()}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if is_main_process():
            # The next signal leaves no time for it. Where it cannot be written, nor can the checkpoint, which tells.
            with suppress(OSError):
                write_exit(self._folder.record, EXIT_OF[signal.Signals(number)])
        _next_one_kills()
        say(f"{signal.Signals(number).name}: finishing this step and saving; once more to leave at once")

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


def requeued() -> bool:
    """Ask SLURM to start this job again; False outside of a job, and where it refuses."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)  # noqa: S607
    except OSError as error:
        warn(f"scontrol requeue {job} cannot be run: {error}")
        return False
    if done.returncode != 0:
        warn(f"scontrol requeue {job} failed: {done.stderr.strip()}")
    return done.returncode == 0


def _next_one_kills() -> None:
    for number in to_hear():
        signal.signal(number, signal.SIG_DFL)
