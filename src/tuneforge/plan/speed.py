"""What a device's data sheet says of a run's speed, cost and energy."""

from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.schema.hardware import Hardware

USUAL_MFU = 0.35
"""Share of the peak that well-kept training reaches without fp8: 33 to 39 % (torchtitan's tables for 8B on H100)."""


def flops_per_token(shape: ModelShape, method: Trainable) -> float:
    """Floating-point operations of a trained token: 2 a weight forward, 2 for its input's gradient, 2 for its own.

    Weights that are frozen have no gradient of their own; of a mixture's experts, those count that a token goes
    through. Attention's own products, which grow with the row, are left out: 5 % of an 8B model's at 2,048 tokens (the
    usual 6N of arXiv 2001.08361, section 2.1).
    """
    weights = shape.active_parameters() - (0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size)
    trained = weights if method.kind == "full" else method.num_parameters(shape)
    return 4.0 * weights + 2.0 * trained


def efficiency(
    hardware: Hardware, flops: float | None, tokens_per_s: float, seconds: float, devices: int
) -> dict[str, float]:
    """Utilisation, price and energy of a run on `devices` of the profile's devices, as far as the profile knows them.

    Returns:
        `mfu`: share of the peak of dense bf16 products; `usd`: price on demand; `kwh`: energy at the power limit, so
        at most.
    """
    hours, found = seconds / 3600, {}
    if hardware.bf16_tflops is not None and flops is not None:
        found["mfu"] = flops * tokens_per_s / (devices * hardware.bf16_tflops * 1e12)
    if hardware.usd_per_hour is not None:
        found["usd"] = hours * devices * hardware.usd_per_hour
    if hardware.tdp_w is not None:
        found["kwh"] = hours * devices * hardware.tdp_w / 1000
    return found


def expected_tokens_per_s(hardware: Hardware, flops: float) -> float | None:
    """Tokens a second that one device trains at `USUAL_MFU`; None where the profile gives no peak."""
    return None if hardware.bf16_tflops is None else USUAL_MFU * hardware.bf16_tflops * 1e12 / flops


def generated_tokens_per_s(hardware: Hardware, weight_bytes: float) -> float | None:
    """Tokens a second that one sequence can be generated at, at most: each reads every weight once."""
    return None if hardware.bandwidth_gb_s is None else hardware.bandwidth_gb_s * 1e9 / weight_bytes
