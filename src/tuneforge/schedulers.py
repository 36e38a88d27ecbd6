"""Learning-rate schedules by the names of conf/scheduler: (optimizer, number of steps) in, scheduler out."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tuneforge.schema.types import Fraction, Probability


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


def warmup_steps(num_steps: int, ratio: float) -> int:
    """Optimizer steps of warm-up; at least one where any is asked for."""
    return math.ceil(num_steps * ratio)


def rising(step: int, warmup: int) -> float:
    """Share of the peak rate at `step` of the warm-up: never 0, or the first step would be wasted."""
    return (step + 1) / (warmup + 1)
