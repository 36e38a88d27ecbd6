"""What the guards cost a step of the default job: `python benchmarks/guards.py`. The limit is 3 %.

One run whose guards are on in every second step: what else the machine does meets both alike. `--short` is a look.
`forgetting_check` and `generation_watch` keep to a share of the time by themselves, and are off.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from tuneforge.artifacts.folder import RunFolder
from tuneforge.build import Loaders, build_trainer, prepare
from tuneforge.callbacks.guard import guards
from tuneforge.compose import compose
from tuneforge.console import quiet_libraries
from tuneforge.data import source
from tuneforge.targets import make

WARM = 4
LIMIT = 1.03


class Switch(pl.Callback):
    """Switches guards on and off by turns, and times what lies between the starts of two steps."""

    def __init__(self) -> None:
        self.seconds: tuple[list[float], list[float]] = ([], [])
        self.started = 0.0
        self.on = 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember what on is."""
        self.guards = list(guards(trainer).values())
        self.actions = [guard.action for guard in self.guards]
        self.watchers = list(pl_module.watchers)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The other way round at each step."""
        if batch_idx % trainer.accumulate_grad_batches:
            return
        now = time.perf_counter()
        if self.started:
            self.seconds[self.on].append(now - self.started)
        self.on = 1 - self.on
        for guard, action in zip(self.guards, self.actions, strict=True):
            guard.action = action if self.on else "none"
        pl_module.watchers = self.watchers if self.on else []
        self.started = time.perf_counter()


def main() -> int:
    """Medians of the steps with and without, and their ratio; 1 where it is above the limit."""
    quiet_libraries()
    steps = 24 if "--short" in sys.argv else 160
    composed = compose(
        [
            *(f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "data.split.max_eval_rows=8"),
            *("callbacks.forgetting_check.action=none", "callbacks.generation_watch.action=none"),
        ]
    )
    rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
    with tempfile.TemporaryDirectory() as folder:
        context = prepare(composed, rows, RunFolder(Path(folder)))
        module = make("task_recipe", context.tree["task_recipe"], pl.LightningModule, context)
        trainer, switch = build_trainer(context, -1), Switch()
        trainer.callbacks.insert(0, switch)
        trainer.fit(module, Loaders(context))
    off, on = (statistics.median(side[WARM:]) for side in switch.seconds)
    pairs = [b / a for a, b in zip(*(side[WARM:] for side in switch.seconds), strict=False)]
    print(f"{len(pairs)} pairs of steps: guards off {off:.4f} s, on {on:.4f} s: {on / off:.3f} x")
    print(f"the median pair {statistics.median(pairs):.3f} x")
    return int(on / off > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
