"""A progress bar with loss, eval loss, tokens/s and time left; plain lines where there is no terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from tuneforge.console import console, say


class Progress(ProgressBar):
    """One bar for training; each evaluation leaves a line."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: RichProgress | None = None
        self._eval = ""

    def disable(self) -> None:
        """Lightning calls it on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """The opposite of `disable`."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the bar."""
        if not (self._enabled and console.is_terminal):
            return
        self._bar = RichProgress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step, numbers="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move the bar after an optimizer step."""
        metrics = trainer.callback_metrics
        if self._bar is None or "train/loss" not in metrics:
            return
        numbers = f"loss {metrics['train/loss']:.3f}{self._eval}  {metrics['train/tokens_per_s']:,.0f} tokens/s"
        self._bar.update(self._task, completed=trainer.global_step, numbers=numbers)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the evaluation's line."""
        if trainer.state.fn != "fit" or not self._enabled:
            return
        loss = float(trainer.callback_metrics["eval/loss"])
        self._eval = f"  eval {loss:.3f}"
        train = trainer.callback_metrics.get("train/loss")
        speed = trainer.callback_metrics.get("train/tokens_per_s")
        fraction = trainer.callback_metrics.get("train/supervised_fraction")
        say(
            f"step {trainer.global_step:>5}/{trainer.max_steps}  eval loss {loss:.4f}"
            + "".join(f"  {name} {value:.4f}" for name, value in _others(trainer.callback_metrics))
            + (f"  train loss {float(train):.4f}" if train is not None else "")
            + (
                f"  {float(speed):,.0f} {'' if fraction is None else 'supervised '}tokens/s"
                if speed is not None
                else ""
            )
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar away."""
        self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _others(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What an objective measures beside its loss; perplexity is the loss again."""
    for name, value in metrics.items():
        if name.startswith("eval/") and name not in ("eval/loss", "eval/perplexity"):
            yield name.removeprefix("eval/").replace("_", " "), float(value)
