"""Nothing is learnt: weights that do not move, modules without gradients, a loss that stays where it was."""

import math
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tuneforge.callbacks.guard import Guard, agreed, any_process
from tuneforge.errors import Problem
from tuneforge.schema.types import NonNegative, PositiveInt, Probability
from tuneforge.sharding import ClippingInStep, in_parts
from tuneforge.steps import StepFacts

SAMPLED = 1024
"""Elements of each trained tensor that are compared with the start."""
LEAST_MOVE = 1e-8
"""Of the largest weight: a matrix that starts at 0 is moved by any update, however small."""
LOOKS = 2
"""Steps of an evaluation's interval whose gradients are looked at tensor by tensor."""


class UnderfitGuard(Guard):
    """Looks at each evaluation at what moved since the start of the run, and what had gradients."""

    name: ClassVar[str] = "underfit_guard"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop"] = "warn",
        after_steps: PositiveInt = 100,
        min_fall: Probability = 0.005,
        min_grad_norm: NonNegative = 1e-7,
    ) -> None:
        """A loss is flat when, `after_steps` steps after warm-up, no evaluation lies `min_fall` under the base's; a
        gradient norm is near zero under `min_grad_norm`.
        """
        super().__init__(action)
        self.after_steps = after_steps
        self.min_fall = min_fall
        self.min_grad_norm = min_grad_norm
        self._base: float | None = None
        self._best = math.inf
        self._start: dict[str, Tensor] = {}
        self._had_gradient: Tensor | None = None
        self._norm: Tensor | None = None
        self._looks = 0
        self._sees = True

    def state_dict(self) -> dict[str, Any]:
        """With the losses compared; a resumed run looks at its own movement."""
        return {**super().state_dict(), "base": self._base, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._base, self._best = state_dict["base"], float(state_dict["best"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ask to be told of each step."""
        if self.on:
            pl_module.watchers.append(self.watch)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember some of each trained weight."""
        # An engine that takes the step keeps gradients, and perhaps weights, to itself.
        self._sees = not isinstance(trainer.strategy, ClippingInStep)
        if self.on and self._sees:
            # An evaluation leaves the outermost weights gathered, and a generation does not.
            in_parts(pl_module)
            self._start = {name: _sample(p) for name, p in pl_module.named_parameters() if p.requires_grad}

    def watch(self, facts: StepFacts, optimizer: torch.optim.Optimizer) -> None:
        """The largest norm, and of a few steps which tensors have gradients; on the device."""
        self._norm = facts.grad_norm if self._norm is None else torch.maximum(self._norm, facts.grad_norm)
        # An adapter's A matrix has none in the first step, where B is zero.
        if self._sees and self._looks < LOOKS and facts.step > 1:
            self._looks += 1
            had = torch.stack([_has_gradient(p) for group in optimizer.param_groups for p in group["params"]])
            self._had_gradient = had if self._had_gradient is None else torch.maximum(self._had_gradient, had)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ask what moved."""
        if not self.on:
            return
        loss = float(trainer.callback_metrics["eval/loss"])
        if trainer.state.fn != "fit":
            self._base = loss
        elif self._norm is not None:
            self._best = min(self._best, loss)
            self._judge(trainer, pl_module)
            self._looks, self._had_gradient, self._norm = 0, None, None

    def _judge(self, trainer: pl.Trainer, pl_module: Any) -> None:
        assert self._norm is not None
        rate = pl_module.context.config.optim.lr
        norm = float(self._norm)
        if self._sees:
            self.gauges["moved"] = self._share_moved(trainer, pl_module)
        if norm < self.min_grad_norm:
            message = f"the largest gradient norm since the last evaluation is {norm:.3g}: nothing can be learnt"
            fix = "look at the mask (data.train_on) and at the labels; at method.target_modules; at frozen weights"
            self.act(trainer, Problem("no-gradients", message, self.path, fix=fix))
        elif self.gauges.get("moved") == 0:
            message = f"no trained weight has changed in {trainer.global_step} steps (optim.lr={rate:.3g})"
            fix = f"raise the learning rate: optim.lr={max(10 * rate, 1e-5):.3g}, or ask tuneforge lr_find"
            self.act(trainer, Problem("nothing-moves", message, self.path, fix=fix))
        else:
            self._name_dead(trainer, pl_module)
            self._judge_loss(trainer, pl_module, rate)

    def _share_moved(self, trainer: pl.Trainer, pl_module: Any) -> float:
        """Of the trained tensors, those that differ from the start anywhere looked at, by more than nothing."""
        in_parts(pl_module)
        now = {name: p for name, p in pl_module.named_parameters() if name in self._start}
        moved = torch.stack([(_sample(now[name]) - old).abs().max() for name, old in self._start.items()])
        largest = torch.stack([old.abs().max() for old in self._start.values()]).max()
        return float(any_process(trainer, (moved > LEAST_MOVE * largest).float()).mean())

    def _name_dead(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Tensors without any gradient in the steps looked at."""
        if self._had_gradient is None:
            return
        (optimizer,) = trainer.optimizers
        had = any_process(trainer, self._had_gradient).tolist()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        names = {p: name for name, p in pl_module.named_parameters()}
        dead = [names[p].removeprefix("model.") for p, alive in zip(parameters, had, strict=True) if not alive]
        if dead:
            self.act(
                trainer,
                Problem(
                    "dead-modules",
                    f"{len(dead)} of {len(had)} trained tensors had no gradient: {', '.join(dead[:4])}"
                    f"{' ...' if len(dead) > 4 else ''}",
                    self.path,
                    fix="leave them out (method.target_modules, method.modules_to_save), or see why the loss does not "
                    "reach them",
                ),
            )

    def _judge_loss(self, trainer: pl.Trainer, pl_module: Any, rate: float) -> None:
        warm = math.ceil(pl_module.context.config.scheduler.warmup_ratio * trainer.max_steps)
        if self._base is None or trainer.global_step < warm + self.after_steps:
            return
        fall = 1 - self._best / self._base
        if agreed(trainer, fall < self.min_fall):
            self.act(
                trainer,
                Problem(
                    "flat-loss",
                    f"after {trainer.global_step} steps the best eval loss is {self._best:.4f}, and the base's was "
                    f"{self._base:.4f} ({-fall:+.2%})",
                    self.path,
                    fix=f"in this order: a higher rate (optim.lr={3 * rate:.3g}, or tuneforge lr_find); a higher "
                    "task_recipe.rank; more of task_recipe.targets; the chat template and the mask (data.train_on); "
                    "more epochs",
                ),
            )


def _sample(parameter: Tensor) -> Tensor:
    """Up to `SAMPLED` elements of this process's part, evenly apart."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    flat = local.detach().flatten()
    if not len(flat):
        return flat.new_zeros(1)  # a split tensor may have fewer rows than there are processes
    return flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].clone()


def _has_gradient(parameter: Tensor) -> Tensor:
    """1 where any element of this process's part has one; shape []."""
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros((), device=parameter.device)
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return (local != 0).any().float()
