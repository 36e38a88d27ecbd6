"""Every `auto` of the config worked out on this machine, once, before training."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from tuneforge.data.batches import Rows
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.machine import Machine, usable_bytes
from tuneforge.plan.memory import Setting, largest_per_device
from tuneforge.plan.setting import compute_precision, memory_setting, stored_dtype
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.schema import Config
from tuneforge.schema.training import Batch

BATCH_TOLERANCE = 0.25
"""Share by which a step may miss the batch that was asked for before that is told."""


@dataclass(frozen=True)
class Settled:
    """The numbers a run really used; recorded in run.json."""

    precision: str
    """Lightning's name of the compute type."""
    base_dtype: str
    """Storage of frozen weights."""
    max_length: int
    """Tokens a row."""
    gradient_checkpointing: bool | Literal["selective"]
    activation_offload: bool
    per_device: int
    """Rows of the largest micro-batch."""
    accumulate: int
    """Micro-batches of one optimizer step on each device."""
    rows_per_step: int
    """Rows of one optimizer step over all devices; the same on any number of them."""
    world_size: int
    """Devices, or groups of devices, that read different rows."""
    num_steps: int
    """Optimizer steps of the run."""
    eval_every: int
    """Optimizer steps between two evaluations."""
    documents_per_step: float
    """Mean documents an optimizer step really sees: the effective batch."""
    label_tokens_per_step: float
    """Mean supervised tokens of an optimizer step."""

    def as_dict(self) -> dict[str, Any]:
        """For run.json."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Costs:
    """What the memory estimate needs to know of model and method."""

    shape: ModelShape
    trainable: Trainable
    splits: bool = False
    """The strategy gives each device a part of the weights."""
    parts_in_host: bool = False
    """Those parts wait in host memory."""


def _setting(
    config: Config,
    machine: Machine,
    rows: Rows,
    max_length: int,
    costs: Costs,
    *,
    checkpointing: bool | Literal["selective"],
) -> Setting:
    """The memory estimate's setting for this run."""
    return memory_setting(
        config,
        costs.trainable,
        kind=machine.kind,
        precision=compute_precision(config, kind=machine.kind, bf16=machine.bf16),
        max_length=max_length,
        checkpointing=checkpointing,
        split_over=machine.world_size if costs.splits else 1,
        parts_in_host=costs.parts_in_host,
        logits_rows_fraction=float(rows.num_labels.sum() / rows.num_tokens.sum()),
    )


def settle_length(wanted: int | str, positions: int | None, recipe: int, taken: int = 0) -> int:
    """Tokens in a row; `auto` is what the recipe wants, as far as the model has positions.

    Args:
        wanted: `data.max_length`.
        positions: what the model has; None: no bound.
        recipe: `task_recipe.max_length`.
        taken: positions of each row that the method takes.

    Raises:
        TuneforgeError: more than the model has positions for.
    """
    left = None if positions is None else positions - taken
    besides = f", of which the method's virtual tokens take {taken}" if taken else ""
    if left is not None and left < 2:
        raise TuneforgeError(
            "too-long-for-model",
            f"the model has positions for {positions} tokens{besides}",
            path="method.num_virtual_tokens",
            fix="set method.num_virtual_tokens=20",
        )
    if wanted == "auto":
        return min(left or recipe, recipe)
    assert isinstance(wanted, int)
    if left is not None and wanted > left:
        raise TuneforgeError(
            "too-long-for-model",
            f"is {wanted} and the model has positions for {positions} tokens{besides}",
            path="data.max_length",
            fix=f"set data.max_length={left} or less, or pick a model with a longer context",
        )
    return wanted


def recomputes(config: Config, machine: Machine, may_checkpoint: bool) -> bool | Literal["selective"]:
    """`trainer.gradient_checkpointing` with `auto` worked out."""
    wanted = config.trainer.gradient_checkpointing
    return may_checkpoint and machine.kind != "cpu" if wanted == "auto" else wanted


def fits_whole(
    config: Config, machine: Machine, rows: Rows, max_length: int, costs: Costs, *, may_checkpoint: bool
) -> bool:
    """Whether one device has the memory for a copy of everything, with `batch.per_device` rows (auto: with one)."""
    checkpointing = recomputes(config, machine, may_checkpoint)
    setting = _setting(config, machine, rows, max_length, costs, checkpointing=checkpointing)
    wanted = config.batch.per_device if isinstance(config.batch.per_device, int) else 1
    available = usable_bytes(config.hardware, machine)
    try:
        return largest_per_device(costs.shape, available_bytes=available, at_most=wanted, **setting) == wanted
    except TuneforgeError:
        return False


def settle(
    config: Config, machine: Machine, rows: Rows, max_length: int, costs: Costs | None, *, may_checkpoint: bool = True
) -> Settled:
    """Batch, steps and precision of the run; `costs` is needed for `batch.per_device=auto` alone.

    Raises:
        TuneforgeError: not even one row fits in memory.
    """
    compute = compute_precision(config, kind=machine.kind, bf16=machine.bf16)
    checkpointing = recomputes(config, machine, may_checkpoint)
    offload = config.trainer.activation_offload and machine.kind == "cuda"
    rows_per_step = _rows_per_step(config, rows)
    share = math.ceil(rows_per_step / machine.data_parallel_size)
    if isinstance(config.batch.per_device, int):
        fitting = config.batch.per_device
    else:
        assert costs is not None
        setting = _setting(config, machine, rows, max_length, costs, checkpointing=checkpointing)
        available = usable_bytes(config.hardware, machine)
        fitting = largest_per_device(costs.shape, available_bytes=available, at_most=share, **setting)
    # As few passes as memory allows, evenly filled: the rows of a step are those that one device would take.
    accumulate = math.ceil(share / fitting)
    per_device = math.ceil(share / accumulate)
    num_steps = config.trainer.max_steps or max(1, math.ceil(config.trainer.max_epochs * len(rows) / rows_per_step))
    return Settled(
        precision=compute,
        base_dtype=stored_dtype(config, compute),
        max_length=max_length,
        gradient_checkpointing=checkpointing,
        activation_offload=offload,
        per_device=per_device,
        accumulate=accumulate,
        rows_per_step=rows_per_step,
        world_size=machine.data_parallel_size,
        num_steps=num_steps,
        eval_every=_eval_every(config.trainer.val_check_interval, num_steps),
        documents_per_step=rows.documents_per_row * rows_per_step,
        label_tokens_per_step=float(rows.num_labels.mean()) * rows_per_step,
    )


def batch_is_met(batch: Batch, documents: float, tokens: float) -> bool:
    """Whether a step of so many documents or tokens is the one that was asked for, within `BATCH_TOLERANCE`."""
    by_tokens = batch.effective_tokens is not None
    wanted, found = (batch.effective_tokens or 0, tokens) if by_tokens else (batch.effective, documents)
    return abs(found - wanted) <= BATCH_TOLERANCE * wanted


def batch_warnings(config: Config, settled: Settled, rows: Rows) -> Iterator[Problem]:
    """Where a step is not the one that was asked for, or has too few sequences to give each device one."""
    batch, step = config.batch, settled.rows_per_step
    tokens = float(rows.num_tokens.mean()) * step
    if not batch_is_met(batch, settled.documents_per_step, tokens):
        yield _missed(batch, settled.documents_per_step, tokens, step)
    if step < settled.world_size:
        enough = math.ceil(settled.world_size * settled.documents_per_step / step)
        yield Problem(
            "idle-devices",
            f"is too small for {settled.world_size} devices: a step takes {step} sequences, so "
            f"{settled.world_size - step} devices compute nothing",
            "batch.effective",
            fix=f"set batch.effective={enough} or more, or use fewer devices",
        )


def _missed(batch: Batch, documents: float, tokens: float, step: int) -> Problem:
    """A step is made of whole sequences, and they are too long for the one that was asked for."""
    if batch.effective_tokens is not None:
        return Problem(
            "batch-missed",
            f"is {batch.effective_tokens}, and a step of {step} whole sequences takes {tokens:,.0f} tokens",
            "batch.effective_tokens",
            fix=f"set batch.effective_tokens={round(tokens)}, or a smaller data.max_length for shorter sequences",
        )
    return Problem(
        "batch-missed",
        f"is {batch.effective}, and a step of {step} whole packed sequences takes {documents:.1f} documents",
        "batch.effective",
        fix=f"set data.packing=false for steps of {batch.effective}, or batch.effective={math.ceil(documents)}",
    )


def _rows_per_step(config: Config, rows: Rows) -> int:
    """The effective batch in rows: it is given in documents (or tokens), and packing puts several into a row."""
    if config.batch.effective_tokens is not None:
        return max(1, round(config.batch.effective_tokens / float(rows.num_tokens.mean())))
    return max(1, round(config.batch.effective / rows.documents_per_row))


def _eval_every(interval: float, num_steps: int) -> int:
    """A whole number is steps; a fraction is a share of the run."""
    if isinstance(interval, int):
        return min(interval, num_steps)
    return max(1, math.ceil(interval * num_steps)) if interval > 0 else num_steps
