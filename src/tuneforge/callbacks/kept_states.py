"""Copies of what training changes, in host memory, to go back to."""

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from tuneforge.callbacks.guard import every_guard
from tuneforge.sharding import ClippingInStep, Sharding

GIB = 2**30
STATES = 3
"""Copies' worth of fp32 weights that weights with AdamW's two states take."""


@dataclass(frozen=True)
class _Kept:
    step: int
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    method: dict[str, Any]


@runtime_checkable
class Rewinds(Protocol):
    """A guard that keeps copies to go back to."""

    kept: "KeptStates"


class KeptStates:
    """The trained weights, the optimizer's state and the method's, as they were after some steps."""

    def __init__(self, every: int, count: int, at_most_gb: float) -> None:
        """One copy each `every` steps, the newest `count` of them."""
        self.every = every
        self.at_most_gb = at_most_gb
        self._kept: deque[_Kept] = deque(maxlen=count)
        self._unproven: list[_Kept] = []

    def why_not(self, trainer: pl.Trainer, pl_module: Any) -> str:
        """Why copies cannot be kept in this run; "" where they can."""
        if isinstance(trainer.strategy, Sharding | ClippingInStep):
            return "the strategy splits the weights over devices"
        wanted = STATES * sum(p.numel() * p.element_size() for _, p in _trained(pl_module)) / GIB
        wanted *= self._kept.maxlen or 1
        return f"a copy would take {wanted:.1f} GiB of host memory" if wanted > self.at_most_gb else ""

    def take(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Copy the present state; until `confirm` it is not gone back to."""
        (optimizer,) = trainer.optimizers
        self._unproven.append(
            _Kept(
                trainer.global_step,
                {name: _on_host(p) for name, p in _trained(pl_module)},
                _copied(optimizer.state_dict()),
                _copied(pl_module.context.method.state(pl_module.model)),
            )
        )

    def confirm(self, step: int) -> None:
        """Step `step` was sound: so were the weights it started from."""
        while self._unproven and self._unproven[0].step < step:
            self._kept.append(self._unproven.pop(0))

    def restore(self, trainer: pl.Trainer, pl_module: Any, before: int) -> int | None:
        """Go back to the newest copy of step `before` or earlier, else to the oldest; learning rates stay.

        Every other guard's copies follow: those of the steps that are left out would bring their weights back.

        Returns:
            The step of the copy; None where there is none.
        """
        self._unproven.clear()
        if not self._kept:
            return None
        while len(self._kept) > 1 and self._kept[-1].step > before:
            self._kept.pop()
        kept = self._kept[-1]
        with torch.no_grad():
            for name, parameter in _trained(pl_module):
                parameter.copy_(kept.weights[name])
        (optimizer,) = trainer.optimizers
        rates: list[dict[str, Any]] = [{k: g[k] for k in ("lr", "initial_lr")} for g in optimizer.param_groups]
        # A copy of the copy: `load_state_dict` takes over tensors that are on its device already.
        optimizer.load_state_dict(_copied(kept.optimizer))
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group.update(rate)
        pl_module.context.method.load_state(pl_module.model, _copied(kept.method))
        for guard in every_guard(trainer):
            if isinstance(guard, Rewinds) and guard.kept is not self:
                guard.kept._follow(kept)
        return kept.step

    def _follow(self, restored: _Kept) -> None:
        """Drop copies that are newer than the restored one; without any left, share that."""
        self._unproven.clear()
        while self._kept and self._kept[-1].step > restored.step:
            self._kept.pop()
        if not self._kept:
            self._kept.append(restored)


def scale_rate(trainer: pl.Trainer, factor: float) -> float:
    """Multiply the learning rate from here on, on whatever schedule; returns the present one."""
    (optimizer,) = trainer.optimizers
    for group in optimizer.param_groups:
        group["lr"] *= factor
        group["initial_lr"] *= factor
    for config in trainer.lr_scheduler_configs:
        config.scheduler.base_lrs = [rate * factor for rate in config.scheduler.base_lrs]
    return float(optimizer.param_groups[0]["lr"])


def _trained(pl_module: Any) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in pl_module.named_parameters() if p.requires_grad]


def _copied(state: Any) -> Any:
    return apply_to_collection(state, Tensor, _on_host)


def _on_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
