"""What the guards cost a step of the default job: `python benchmarks/guards.py`. The limit is 3 %.

Two runs of the same job in one process, a step of the one after a step of the other: what else the machine does meets
both alike.
"""

import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

STEPS = 60
WARM = 5
LIMIT = 1.03
GUARDS = ("nan_guard", "spike_guard", "overfit_guard", "underfit_guard", "data_guard")


class Turns:
    """Two threads, one step each in turn."""

    def __init__(self) -> None:
        self.whose = 0
        self.left = {0, 1}
        self.changed = threading.Condition()

    def wait(self, me: int) -> None:
        """Until it is this one's turn."""
        with self.changed:
            self.changed.wait_for(lambda: self.whose == me or self.left == {me})

    def give(self, me: int) -> None:
        """To the other."""
        with self.changed:
            self.whose = 1 - me
            self.changed.notify_all()

    def leave(self, me: int) -> None:
        """For good."""
        with self.changed:
            self.left.discard(me)
            self.whose = 1 - me
            self.changed.notify_all()


def steps(overrides: list[str], folder: Path, turns: Turns, me: int, seconds: list[float]) -> None:
    """Train with Lightning alone, from the same composition; keep each step's wall time, the loggers' part included."""
    import lightning.pytorch as pl

    from tuneforge.artifacts.folder import RunFolder
    from tuneforge.build import Loaders, build_trainer, prepare
    from tuneforge.compose import compose
    from tuneforge.data import source
    from tuneforge.targets import make

    class Clock(pl.Callback):
        """Wall time between the starts of two steps, less the waiting."""

        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.fit_loop.epoch_loop.batch_idx % trainer.accumulate_grad_batches:
                return
            if hasattr(self, "started"):
                seconds.append(time.perf_counter() - self.started)
                turns.give(me)
            turns.wait(me)
            self.started = time.perf_counter()

    turns.wait(me)
    composed = compose(overrides)
    rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
    context = prepare(composed, rows, RunFolder(folder))
    module = make(context.tree["task_recipe"], context)
    trainer, loaders = build_trainer(context, -1), Loaders(context)
    trainer.callbacks.insert(0, Clock())
    turns.give(me)
    trainer.fit(module, loaders)


def one(overrides: list[str], folder: Path, turns: Turns, me: int, seconds: list[float]) -> None:
    """A run that leaves its turn to the other whatever ends it."""
    try:
        steps(overrides, folder, turns, me, seconds)
    finally:
        turns.leave(me)


def main() -> int:
    """Interleaved, medians, and their ratio; 1 where it is above the limit."""
    os.environ["TUNEFORGE_PLUGINS"] = "off"
    common = [
        f"trainer.max_steps={STEPS + WARM}",
        f"trainer.val_check_interval={STEPS + WARM}",
        "data.split.max_eval_rows=8",
    ]
    off = [f"callbacks.{name}.action=none" for name in GUARDS]
    turns, times = Turns(), ([], [])
    with tempfile.TemporaryDirectory() as folder:
        threads = [
            threading.Thread(target=one, args=([*common, *extra], Path(folder) / str(me), turns, me, times[me]))
            for me, extra in enumerate(([], off))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with_all, without = (statistics.median(t[WARM:]) for t in times)
    pairs = [a / b for a, b in zip(times[0][WARM:], times[1][WARM:], strict=False)]
    print(
        f"guards off {without:.4f} s a step, on {with_all:.4f} s: {with_all / without:.3f} x "
        f"(median of the steps' own ratios {statistics.median(pairs):.3f})"
    )
    return int(with_all / without > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
