"""Optimizers by the names of conf/optim: parameter groups in, optimizer out."""

from collections.abc import Iterable
from typing import Any

import torch

from tuneforge.schema.types import NonNegative, PositiveFloat

Groups = list[dict[str, Any]]


def adamw(
    groups: Groups, /, *, lr: PositiveFloat, betas: tuple[float, float] = (0.9, 0.999), eps: NonNegative = 1e-8
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), fused into one kernel a step where the device has it."""
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_all_floating(groups))


def paged_adamw_8bit(
    groups: Groups, /, *, lr: PositiveFloat, betas: tuple[float, float] = (0.9, 0.999), eps: NonNegative = 1e-8
) -> torch.optim.Optimizer:
    """AdamW with 8-bit states, paged to host memory on CUDA (arXiv 2110.02861, 2305.14314); not paged elsewhere."""
    from bitsandbytes import optim

    paged = _devices(groups) == {"cuda"}
    kind: Any = getattr(optim, "PagedAdamW8bit" if paged else "AdamW8bit")
    optimizer: torch.optim.Optimizer = kind(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)
    return optimizer


def _parameters(groups: Groups) -> Iterable[torch.Tensor]:
    return (p for g in groups for p in g["params"])


def _all_floating(groups: Groups) -> bool:
    return all(p.is_floating_point() for p in _parameters(groups))


def _devices(groups: Groups) -> set[str]:
    return {p.device.type for p in _parameters(groups)}
