"""Every `auto` of the config worked out on this machine, once, before training."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from tuneforge.data.batches import Rows
from tuneforge.errors import TuneforgeError
from tuneforge.machine import Machine, usable_bytes
from tuneforge.plan.memory import Setting, largest_per_device
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.schema import Config


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
    """Rows of one forward pass."""
    accumulate: int
    """Forward passes of one optimizer step."""
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

    @property
    def rows_per_step(self) -> int:
        """Rows of one optimizer step over all devices."""
        return self.per_device * self.accumulate * self.world_size

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


def precision(config: Config, machine: Machine) -> str:
    """The compute type: bf16 where the device has it, fp16 with scaling on older GPUs, else fp32."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    if machine.bf16:
        return "bf16-mixed"
    return "16-mixed" if machine.kind == "cuda" else "32-true"


def base_dtype(config: Config, precision_name: str) -> str:
    """Storage of frozen weights: the compute type, so that nothing is converted in every product."""
    if config.model.dtype != "auto":
        return config.model.dtype
    return {"bf16": "bfloat16", "16": "float16", "32": "float32"}[precision_name.split("-", maxsplit=1)[0]]


def memory_setting(
    config: Config,
    machine: Machine,
    rows: Rows,
    max_length: int,
    costs: Costs,
    *,
    checkpointing: bool | Literal["selective"],
) -> Setting:
    """What the memory estimate is asked for this run."""
    compute = precision(config, machine)
    return {
        "method": costs.trainable,
        "max_length": max_length,
        # Of a quantised method the estimate itself knows the bits.
        "weight_bits": 32 if compute.startswith("32") else 16,
        "optimizer_bytes_per_param": config.optim.state_bytes,
        "logits_rows_fraction": float(rows.num_labels.sum() / rows.num_tokens.sum()),
        "attention": config.model.attn_implementation,
        "compute_bytes": 4 if compute.startswith("32") else 2,
        "gradient_checkpointing": checkpointing,
        "activation_offload": config.trainer.activation_offload and machine.kind == "cuda",
        "split_over": machine.world_size if costs.splits else 1,
        "parts_in_host": costs.parts_in_host,
        "device_kind": machine.kind,
    }


def recomputes(config: Config, machine: Machine, may_checkpoint: bool) -> bool | Literal["selective"]:
    """`trainer.gradient_checkpointing` with `auto` worked out."""
    wanted = config.trainer.gradient_checkpointing
    return may_checkpoint and machine.kind != "cpu" if wanted == "auto" else wanted


def fits_whole(
    config: Config, machine: Machine, rows: Rows, max_length: int, costs: Costs, *, may_checkpoint: bool
) -> bool:
    """Whether one device has the memory for a copy of everything, with one row."""
    checkpointing = recomputes(config, machine, may_checkpoint)
    setting = memory_setting(config, machine, rows, max_length, costs, checkpointing=checkpointing)
    try:
        largest_per_device(costs.shape, available_bytes=usable_bytes(config.hardware, machine), at_most=1, **setting)
    except TuneforgeError:
        return False
    return True


def settle(
    config: Config, machine: Machine, rows: Rows, max_length: int, costs: Costs | None, *, may_checkpoint: bool = True
) -> Settled:
    """Batch, steps and precision of the run; `costs` is needed for `batch.per_device=auto` alone.

    Raises:
        TuneforgeError: not even one row fits in memory.
    """
    compute = precision(config, machine)
    checkpointing = recomputes(config, machine, may_checkpoint)
    offload = config.trainer.activation_offload and machine.kind == "cuda"
    wanted = _rows_per_step(config, rows)
    if isinstance(config.batch.per_device, int):
        per_device = config.batch.per_device
    else:
        assert costs is not None
        setting = memory_setting(config, machine, rows, max_length, costs, checkpointing=checkpointing)
        share = max(1, wanted // machine.data_parallel_size)
        available = usable_bytes(config.hardware, machine)
        fitting = largest_per_device(costs.shape, available_bytes=available, at_most=share, **setting)
        # As many passes as that takes, evenly filled: the effective batch is met as closely as rows allow.
        per_device = math.ceil(share / math.ceil(share / fitting))
    accumulate = max(1, round(wanted / (per_device * machine.data_parallel_size)))
    rows_per_step = per_device * accumulate * machine.data_parallel_size
    num_steps = config.trainer.max_steps or max(1, math.ceil(config.trainer.max_epochs * len(rows) / rows_per_step))
    return Settled(
        precision=compute,
        base_dtype=base_dtype(config, compute),
        max_length=max_length,
        gradient_checkpointing=checkpointing,
        activation_offload=offload,
        per_device=per_device,
        accumulate=accumulate,
        world_size=machine.data_parallel_size,
        num_steps=num_steps,
        eval_every=_eval_every(config.trainer.val_check_interval, num_steps),
        documents_per_step=rows.documents_per_row * rows_per_step,
        label_tokens_per_step=float(rows.num_labels.mean()) * rows_per_step,
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
