"""The ends of a run: measuring before and after, restoring the best weights, exporting them."""

import shutil
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch

from tuneforge import adapters
from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.callbacks.samples import SampleAnswers
from tuneforge.callbacks.signals import StopSignals
from tuneforge.callbacks.trial_reports import TrialReports
from tuneforge.context import Context
from tuneforge.data.labelled import LabelledRows
from tuneforge.objectives.classification import Classification
from tuneforge.sharding import Sharding


@dataclass
class Measured:
    """The model at one moment, on the eval split."""

    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)
    classes: dict[str, Any] | None = None
    """Confusion matrix and each class's numbers, for classification."""


def measure(trainer: pl.Trainer, module: pl.LightningModule, loaders: pl.LightningDataModule) -> Measured:
    """Eval metrics and sample answers of the weights as they are; nothing is logged or written.

    Lightning opens every logger's files before it loads the model, and a model that cannot be loaded must leave none.
    """
    loggers, trainer.loggers = trainer.loggers, []
    try:
        metrics = trainer.validate(module, loaders, verbose=False)[0]
    finally:
        trainer.loggers = loggers
    classified = module.classified if isinstance(module, Classification) else None
    return Measured(
        {k: float(v) for k, v in metrics.items()},
        _callback(trainer, SampleAnswers).take(),
        classified.as_record() if classified else None,
    )


def restore_best(trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Load the weights of the checkpoint that its measure picks; the last weights stay where none is kept."""
    kept = [c for c in trainer.callbacks if isinstance(c, Checkpoints)]  # type: ignore[attr-defined]
    if not kept:
        return
    strategy = trainer.strategy
    best = strategy.broadcast(kept[0].best(trainer) if trainer.is_global_zero else None)
    if best is None:
        return
    checkpoint = strategy.load_checkpoint(best, weights_only=True)
    module.on_load_checkpoint(checkpoint)
    strategy.load_model_state_dict(checkpoint, strict=False)


def signal_received(trainer: pl.Trainer) -> int | None:
    """The signal that ended training early, if one did."""
    received: int | None = _callback(trainer, StopSignals).received
    return received


def pruned(trainer: pl.Trainer) -> bool:
    """Whether the pruner of a sweep ended training."""
    return any(isinstance(c, TrialReports) and c.pruned_at is not None for c in trainer.callbacks)  # type: ignore[attr-defined]


def export(context: Context, trainer: pl.Trainer, module: Any) -> None:
    """Write adapter or model, tokenizer and chat template as `from_pretrained` reads them."""
    strategy = trainer.strategy
    everything = context.method.trains_base
    with strategy.gathered(module.model, everything=everything) if isinstance(strategy, Sharding) else nullcontext():
        if trainer.is_global_zero:
            _write(context, module)


def _write(context: Context, module: Any) -> None:
    is_adapter = not context.method.trains_base
    folder = context.folder.result(is_adapter)
    temporary = folder.with_name(f".{folder.name}.tmp")
    if not is_adapter:
        for parameter in module.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, context.settled.base_dtype))
    context.method.save(module.model, temporary)
    context.tokenizer.save_pretrained(temporary)
    if isinstance(context.train_rows, LabelledRows):
        # Beside an adapter too: labels, padding and loss, without which its head cannot be read.
        adapters.base_model(module.model).config.save_pretrained(temporary)
    if folder.exists():
        shutil.rmtree(folder)  # left by this run before it was interrupted between here and its end
    temporary.replace(folder)


def _callback(trainer: pl.Trainer, kind: type[Any]) -> Any:
    return next(c for c in trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]
