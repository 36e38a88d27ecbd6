"""Optimizers by the names of conf/optim: parameter groups in, optimizer out."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch

from tuneforge.schema.types import Epsilon, LearningRate, PositiveFloat, Probability, Range

Groups = list[dict[str, Any]]
Betas = tuple[Probability, Probability]
"""Decay of the first and of the second moment."""


def adamw(
    groups: Groups, /, *, lr: LearningRate, betas: Betas = (0.9, 0.999), eps: Epsilon = 1e-8
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), fused into one kernel a step where the device has it."""
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=_all_floating(groups))


def adamw_8bit(
    groups: Groups, /, *, lr: LearningRate, betas: Betas = (0.9, 0.999), eps: Epsilon = 1e-8
) -> torch.optim.Optimizer:
    """AdamW with 8-bit states (arXiv 2110.02861)."""
    return _of_bitsandbytes("AdamW8bit", groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)


def paged_adamw_8bit(
    groups: Groups, /, *, lr: LearningRate, betas: Betas = (0.9, 0.999), eps: Epsilon = 1e-8
) -> torch.optim.Optimizer:
    """AdamW with 8-bit states, paged to host memory on CUDA (arXiv 2305.14314); `adamw_8bit` elsewhere."""
    if _devices(groups) != {"cuda"}:
        return adamw_8bit(groups, lr=lr, betas=betas, eps=eps)
    return _of_bitsandbytes("PagedAdamW8bit", groups, lr=lr, betas=(betas[0], betas[1]), eps=eps)


def adafactor(
    groups: Groups,
    /,
    *,
    lr: LearningRate,
    beta2_decay: Annotated[float, Range(ge=-1, le=0)] = -0.8,
    clip_threshold: PositiveFloat = 1.0,
) -> torch.optim.Optimizer:
    """Adafactor (arXiv 1804.04235) at a fixed rate, not scaled by the weights: an adapter's start at 0."""
    from transformers.optimization import Adafactor

    return Adafactor(
        groups,
        lr=lr,
        decay_rate=beta2_decay,
        clip_threshold=clip_threshold,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
    )


def lion(groups: Groups, /, *, lr: LearningRate, betas: Betas = (0.9, 0.99)) -> torch.optim.Optimizer:
    """Lion (arXiv 2302.06675): the sign of the momentum; one state a weight."""
    return _of_bitsandbytes("Lion", groups, lr=lr, betas=(betas[0], betas[1]))


def muon(
    groups: Groups, /, *, lr: LearningRate, momentum: Probability = 0.95, betas: Betas = (0.9, 0.95)
) -> torch.optim.Optimizer:
    """Muon for matrices, AdamW for the rest, at one rate.

    Updates are orthogonalised (kellerjordan.github.io/posts/muon) and scaled to the size of AdamW's (arXiv 2502.16982,
    equation 4), so that AdamW's learning rates and decays hold.
    """
    matrices, rest = _by_shape(groups)
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(torch.optim.Muon(matrices, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
    if rest:
        parts.append(torch.optim.AdamW(rest, lr=lr, betas=(betas[0], betas[1])))
    return parts[0] if len(parts) == 1 else Together(parts)


class Together(torch.optim.Optimizer):
    """Several optimizers as one: each keeps its own parameters and states, and schedules see all groups."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        # The very groups of the parts: a schedule that changes a rate here changes it there.
        self.param_groups = [group for part in parts for group in part.param_groups]

    def step(self, closure: Any = None) -> Any:
        """One step of each; the closure is called once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand each part its own; their groups are new objects then."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def _of_bitsandbytes(name: str, groups: Groups, **options: Any) -> torch.optim.Optimizer:
    from bitsandbytes import optim

    kind: Any = getattr(optim, name)
    optimizer: torch.optim.Optimizer = kind(groups, **options)
    return optimizer


def _by_shape(groups: Groups) -> tuple[Groups, Groups]:
    """The same groups with their matrices alone, and with the rest: a vector stored as [n, 1] is no matrix."""
    split: tuple[Groups, Groups] = ([], [])
    for group in groups:
        for kept, side in zip(split, (True, False), strict=True):
            chosen = [p for p in group["params"] if (p.ndim == 2 and min(p.shape) > 1) == side]
            if chosen:
                kept.append({**group, "params": chosen})
    return split


def _parameters(groups: Groups) -> Iterable[torch.Tensor]:
    return (p for g in groups for p in g["params"])


def _all_floating(groups: Groups) -> bool:
    return all(p.is_floating_point() for p in _parameters(groups))


def _devices(groups: Groups) -> set[str]:
    return {p.device.type for p in _parameters(groups)}
