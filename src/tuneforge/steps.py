"""What an objective tells of an optimizer step before it is taken, to whoever watches."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.optim import Optimizer


@dataclass(frozen=True)
class StepFacts:
    """One optimizer step, measured and not yet taken. Tensors have shape [] and are the same on all processes."""

    step: int
    """Its number, from 1."""
    loss: Tensor
    """Over all micro-batches and devices, without penalties."""
    grad_norm: Tensor
    """Of the gradients before they were clipped."""


Watcher = Callable[[StepFacts, Optimizer], None]
"""Called between clipping and the optimizer's step; reading a tensor there makes the host wait for the device."""
