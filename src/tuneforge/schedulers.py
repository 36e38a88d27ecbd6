"""Learning-rate schedules by the names of conf/scheduler: (optimizer, number of steps) in, scheduler out."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tuneforge.schema.types import Fraction, PositiveInt, Probability


def cosine(
    optimizer: Optimizer, num_steps: int, /, *, warmup_ratio: Probability = 0.03, min_lr_ratio: Fraction = 0.0
) -> LambdaLR:
    """Linear warm-up, then half a cosine down to `min_lr_ratio` of the peak (arXiv 1608.03983)."""
    warmup = warmup_steps(num_steps, warmup_ratio)

    def factor(step: int) -> float:
        done = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))

    return LambdaLR(optimizer, lambda step: rising(step, warmup) if step < warmup else factor(step))


def linear(optimizer: Optimizer, num_steps: int, /, *, warmup_ratio: Probability = 0.03) -> LambdaLR:
    """Linear warm-up, then linearly down to 0."""
    warmup = warmup_steps(num_steps, warmup_ratio)
    falling = max(1, num_steps - warmup)
    return LambdaLR(
        optimizer, lambda step: rising(step, warmup) if step < warmup else max(0.0, (num_steps - step) / falling)
    )


def constant(optimizer: Optimizer, num_steps: int, /, *, warmup_ratio: Probability = 0.03) -> LambdaLR:
    """Linear warm-up, then the peak rate to the end."""
    warmup = warmup_steps(num_steps, warmup_ratio)
    return LambdaLR(optimizer, lambda step: rising(step, warmup) if step < warmup else 1.0)


def cosine_with_restarts(
    optimizer: Optimizer, num_steps: int, /, *, warmup_ratio: Probability = 0.03, cycles: PositiveInt = 3
) -> LambdaLR:
    """Linear warm-up, then `cycles` times from the peak down half a cosine (arXiv 1608.03983)."""
    warmup = warmup_steps(num_steps, warmup_ratio)

    def factor(step: int) -> float:
        done = (step - warmup) / max(1, num_steps - warmup)
        return 0.0 if done >= 1 else 0.5 * (1 + math.cos(math.pi * (done * cycles % 1.0)))

    return LambdaLR(optimizer, lambda step: rising(step, warmup) if step < warmup else factor(step))


def wsd(
    optimizer: Optimizer,
    num_steps: int,
    /,
    *,
    warmup_ratio: Probability = 0.03,
    decay_ratio: Fraction = 0.2,
    min_lr_ratio: Fraction = 0.0,
) -> LambdaLR:
    """Warm-up, stable, decay (arXiv 2404.06395): the peak rate, then linearly down over the last `decay_ratio`.

    The stable part can be gone on from with more data, which a cosine's middle cannot.
    """
    warmup = warmup_steps(num_steps, warmup_ratio)
    decay = max(1, math.ceil(num_steps * decay_ratio))

    def factor(step: int) -> float:
        left = min(1.0, max(0.0, (num_steps - step) / decay))
        return min_lr_ratio + (1 - min_lr_ratio) * left

    return LambdaLR(optimizer, lambda step: rising(step, warmup) if step < warmup else factor(step))


def inverse_sqrt(optimizer: Optimizer, num_steps: int, /, *, warmup_ratio: Probability = 0.1) -> LambdaLR:
    """Linear warm-up, then falling as one over the root of the step (arXiv 1706.03762, section 5.3)."""
    warmup = max(1, warmup_steps(num_steps, warmup_ratio))
    return LambdaLR(optimizer, lambda step: rising(step, warmup) if step < warmup else math.sqrt(warmup / step))


def warmup_steps(num_steps: int, ratio: float) -> int:
    """Optimizer steps of warm-up; at least one where any is asked for."""
    return math.ceil(num_steps * ratio)


def rising(step: int, warmup: int) -> float:
    """Share of the peak rate at `step` of the warm-up: never 0, or the first step would be wasted."""
    return (step + 1) / (warmup + 1)
