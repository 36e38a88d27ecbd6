"""The ends of a run: measuring before and after, restoring the best weights, exporting them."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from transformers.utils import GENERATION_CONFIG_NAME

from tuneforge import adapters, shared
from tuneforge.artifacts import owned
from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.callbacks.samples import SampleAnswers
from tuneforge.callbacks.signals import StopSignals
from tuneforge.callbacks.trial_reports import TrialReports
from tuneforge.context import Context
from tuneforge.data.labelled import LabelledRows
from tuneforge.objectives.classification import Classification
from tuneforge.schema.training import TaskRecipe
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


def measure_base(trainer: pl.Trainer, module: Any, loaders: pl.LightningDataModule) -> Measured:
    """The model before training. Trials of a sweep that start from the same weights measure them once, without samples:
    those are answers of this very model, which the generation watch compares with later ones.
    """
    context: Context = module.context
    if context.trial is None or context.config.samples.num:
        return measure(trainer, module, loaders)
    _load(trainer, module, loaders)
    known = shared.Facts(Path(context.trial.shared), "base", _starts_from(context))
    found = trainer.strategy.broadcast(known.read() if trainer.is_global_zero else None)
    if found is not None:
        return Measured(**found)
    measured = measure(trainer, module, loaders)
    if trainer.is_global_zero:
        known.write(asdict(measured))
    return measured


def _load(trainer: pl.Trainer, module: pl.LightningModule, loaders: pl.LightningDataModule) -> None:
    """What an evaluation does before its first row: processes meet, weights are loaded."""
    limit, trainer.limit_val_batches = trainer.limit_val_batches, 0
    loggers, trainer.loggers = trainer.loggers, []
    try:
        trainer.validate(module, loaders, verbose=False)
    finally:
        trainer.limit_val_batches, trainer.loggers = limit, loggers


def _starts_from(context: Context) -> dict[str, Any]:
    """All that decides what the model before training is, and what is measured of it."""
    tree, settled, method = context.tree, context.settled, context.method
    quantised = method.quantization_config(getattr(torch, settled.base_dtype))
    stored = "float32" if method.stores_fp32 else settled.base_dtype
    hints = {f.name for f in fields(TaskRecipe)}
    return {
        "model": [tree["model"], stored, str(quantised)],
        "method": [] if method.starts_as_base else tree["method"],
        "objective": {k: v for k, v in tree["task_recipe"].items() if k not in hints},
        "rows": shared.digest_of_rows(context.eval_rows.documents),
        "layout": [tree["data"]["packing"], settled.max_length, settled.per_device],
        "seed": context.config.seed,
        "samples": tree["samples"],
        "numbers": [settled.precision, context.machine.name, settled.world_size, tree["strategy"]],
    }


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
    temporary = owned.make_temporary(folder)
    if not is_adapter:
        for parameter in module.model.parameters():
            parameter.data = parameter.data.to(getattr(torch, context.settled.base_dtype))
    try:
        context.method.save(module.model, temporary)
        context.tokenizer.save_pretrained(temporary)
        if isinstance(context.train_rows, LabelledRows):
            # Beside an adapter too: labels, padding and loss, without which its head cannot be read.
            adapters.base_model(module.model).config.save_pretrained(temporary)
        else:
            # As a file: `save_pretrained` refuses some published configs once they are changed.
            context.generation.to_json_file(temporary / GENERATION_CONFIG_NAME, use_diff=True)
        owned.put(temporary, folder)
    except BaseException:
        owned.remove_temporary(temporary)  # a full disk needs the room
        raise


def _callback(trainer: pl.Trainer, kind: type[Any]) -> Any:
    return next(c for c in trainer.callbacks if isinstance(c, kind))  # type: ignore[attr-defined]
