"""What the memory estimate is asked for a config: the same for `plan` and for a run."""

from typing import Literal

from tuneforge.plan.memory import Setting
from tuneforge.plan.shape import Trainable
from tuneforge.schema import Config

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"bf16": "bfloat16", "16": "float16", "32": "float32"}


def compute_precision(config: Config, *, kind: str, bf16: bool) -> str:
    """`trainer.precision` with `auto` resolved: bf16 where the device has it, fp16 on older GPUs, else fp32."""
    if config.trainer.precision != "auto":
        return config.trainer.precision
    if bf16:
        return "bf16-mixed"
    return "16-mixed" if kind in ("cuda", "rocm") else "32-true"


def stored_dtype(config: Config, precision: str) -> str:
    """`model.dtype` with `auto` resolved: the compute type, so that no product converts frozen weights."""
    return config.model.dtype if config.model.dtype != "auto" else _STORED[precision.split("-", maxsplit=1)[0]]


def memory_setting(
    config: Config,
    method: Trainable,
    *,
    kind: str,
    precision: str,
    max_length: int,
    checkpointing: bool | Literal["selective"],
    split_over: int = 1,
    parts_in_host: bool = False,
    logits_rows_fraction: float = 1.0,
) -> Setting:
    """The estimate's setting; `kind` and `precision` are those of the device that the run is planned for."""
    return {
        "method": method,
        "max_length": max_length,
        # The estimate itself knows the bits of a quantised method.
        "weight_bits": 8 * _BYTES[stored_dtype(config, precision)],
        "optimizer_bytes_per_param": config.optim.state_bytes,
        "logits_rows_fraction": logits_rows_fraction,
        # Few architectures lack it, and only the model's code says which: a run has worked it out by then.
        "attention": "sdpa" if config.model.attn_implementation == "auto" else config.model.attn_implementation,
        # bf16-true keeps trained weights and their gradients in it too; the optimizer's states are counted in fp32.
        "trainable_bytes": 2 if precision == "bf16-true" else 4,
        "compute_bytes": 4 if precision.startswith("32") else 2,
        "gradient_checkpointing": checkpointing,
        "activation_offload": config.trainer.activation_offload and kind in ("cuda", "rocm"),
        "split_over": split_over,
        "parts_in_host": parts_in_host,
        "device_kind": kind,
    }
