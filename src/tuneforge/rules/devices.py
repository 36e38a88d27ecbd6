"""What devices can compute."""

from collections.abc import Iterator, Mapping
from typing import Any

from tuneforge.errors import Problem
from tuneforge.rules.registry import rule
from tuneforge.schema import Config


@rule
def metal_is_one_device(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """An Apple machine has one GPU, and torch has no collective operations for it."""
    accelerator = config.trainer.accelerator
    metal = accelerator == "mps" or (accelerator == "auto" and config.hardware.kind == "mps")
    if not metal or config.trainer.devices in ("auto", 1):
        return None
    return Problem(
        "metal-is-one-device",
        f"is {config.trainer.devices}, and an Apple machine has one GPU",
        "trainer.devices",
        fix="drop it, or set trainer.accelerator=cpu",
    )


@rule
def required_hardware_is_used(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """`hardware.require` insists on a GPU that `trainer.accelerator=cpu` would leave idle."""
    if not config.hardware.require or config.trainer.accelerator != "cpu" or config.hardware.kind in ("cpu", "auto"):
        return None
    return Problem(
        "required-hardware-unused",
        f"is cpu, and hardware.require=true insists on {config.hardware.name}",
        "trainer.accelerator",
        fix="drop it, or set hardware.require=false",
    )


@rule
def the_profile_can_compute_it(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Precision and attention must exist on the device: bf16 from Ampere on, fp16 and FlashAttention on GPUs alone."""
    hardware = config.hardware
    kind = {"rocm": "cuda"}.get(hardware.kind, hardware.kind)
    if config.trainer.accelerator == "cpu":
        kind = "cpu"
    if kind == "auto":
        return None
    level = float(hardware.compute_capability) if hardware.compute_capability else None
    bf16 = "bf16" in hardware.precisions or not hardware.precisions
    return next(device_problems(config, f"hardware={hardware.name}", kind, bf16, level), None)


def device_problems(config: Config, name: str, kind: str, bf16: bool, level: float | None) -> Iterator[Problem]:
    """What this config asks for and the device `name` cannot do.

    Args:
        config: the config.
        name: the device, for the message.
        kind: cuda, mps or cpu.
        bf16: whether it computes in bfloat16; a CPU always can, slowly.
        level: NVIDIA's compute capability, None for other devices.
    """
    precision, attention = config.trainer.precision, config.model.attn_implementation
    if precision.startswith("bf16") and kind == "cuda" and not bf16:
        fix = "set trainer.precision=16-mixed, or auto"
        yield Problem("precision-not-there", f"is {precision}, and {name} has no bf16", "trainer.precision", fix=fix)
    if precision == "16-mixed" and kind == "cpu":
        # Lightning would take bf16-mixed instead, with a warning.
        fix = "set trainer.precision=bf16-mixed, or auto"
        message = f"is 16-mixed, and there is no fp16 training on a CPU ({name})"
        yield Problem("precision-not-there", message, "trainer.precision", fix=fix)
    if attention == "flash_attention_2" and (kind != "cuda" or (level is not None and level < 8.0)):
        message = f"is flash_attention_2, which needs an Ampere GPU or newer, and {name} is none"
        yield Problem(
            "attention-not-there", message, "model.attn_implementation", fix="set model.attn_implementation=auto"
        )
    if attention == "flex_attention" and kind == "cpu":
        message = f"is flex_attention, which has no backward pass on a CPU ({name})"
        yield Problem(
            "attention-not-there", message, "model.attn_implementation", fix="set model.attn_implementation=auto"
        )
