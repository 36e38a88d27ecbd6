"""AdaLoRA: the rank is spent where it matters, by pruning singular values during training (arXiv 2303.10512)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from tuneforge.console import say
from tuneforge.errors import TuneforgeError
from tuneforge.methods.base import TargetedMethod
from tuneforge.schema.types import Fraction, NonNegative, PositiveInt, Probability, Size

UNKNOWN_STEPS = 10**6
"""PEFT wants the number of steps when the adapter is built; `on_start` puts in the real one."""

FEWEST_STEPS = 5
"""Below, there is no step between warm-up and the end to weigh singular values in."""


@dataclass(frozen=True, kw_only=True)
class AdaLora(TargetedMethod):
    """Starts every module at rank `init_r` and prunes to `r` on average."""

    splits = False
    reads_gradients: ClassVar[bool] = True

    r: Size = 8
    """Mean rank at the end."""
    init_r: Size = 12
    """Rank at the start; the paper's 1.5 x r."""
    lora_alpha: Size = 32
    """The update is scaled by lora_alpha / rank."""
    lora_dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    warmup: Fraction = 0.1
    """Share of the steps before pruning starts."""
    settled: Fraction = 0.3
    """Share of the steps at the end in which the ranks stay."""
    every: PositiveInt = 1
    """Optimizer steps between two prunings."""
    orth_reg_weight: NonNegative = 0.5
    """Weight of the term that keeps the singular vectors orthogonal."""

    def peft_config(self, model: PreTrainedModel) -> AdaLoraConfig:
        """AdaLoRA's, the schedule still open.

        Raises:
            TuneforgeError: ranks that would have to grow, or shares of the run that leave no step to prune in.
        """
        if self.r > self.init_r:
            message = f"is {self.init_r}, and modules are pruned from it to method.r={self.r}"
            fix = f"set method.init_r={self.r + self.r // 2}, the paper's 1.5 x r, or a lower method.r"
            raise TuneforgeError("wrong-value", message, path="method.init_r", fix=fix)
        if self.warmup + self.settled >= 1:
            message = f"is {self.settled:g}, and with method.warmup={self.warmup:g} no step is left to prune in"
            fix = "give less than 1 together, such as method.warmup=0.1 method.settled=0.3"
            raise TuneforgeError("wrong-value", message, path="method.settled", fix=fix)
        return AdaLoraConfig(
            target_r=self.r,
            init_r=self.init_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            total_step=UNKNOWN_STEPS,
            deltaT=self.every,
            orth_reg_weight=self.orth_reg_weight,
            **self.shared(model),
        )

    def on_start(self, model: Any, num_steps: int) -> None:
        """Lay the schedule over the run; one of a few steps, or that goes on from a pruned adapter, prunes nothing."""
        config = model.peft_config["default"]
        first, last = int(num_steps * self.warmup), num_steps - int(num_steps * self.settled)
        if num_steps < FEWEST_STEPS or last - first < 2 or config.rank_pattern is not None:
            say("AdaLoRA prunes nothing: the run has too few steps, or its adapter is pruned already")
            config.deltaT = config.total_step
            return
        config.total_step = num_steps
        config.tinit, config.tfinal = first, num_steps - last

    def on_step_end(self, model: Any, step: int) -> None:
        """Weigh the singular values by their gradients, and prune."""
        model.base_model.update_and_allocate(step)

    def penalty(self, model: Any) -> Tensor:
        """Mean distance of P P^T and Q^T Q from the identity, in the Frobenius norm (equation 4 of the paper).

        PEFT adds it where the model computes the loss itself, which ours does not.
        """
        distances = []
        for name, p in model.named_parameters():
            if p.requires_grad and ("lora_A" in name or "lora_B" in name):
                product = p @ p.T if "lora_A" in name else p.T @ p
                distances.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=p.device)))
        return self.orth_reg_weight * torch.stack(distances).mean()

    def state(self, model: Any) -> dict[str, Any]:
        """The running importance of each singular value, and the ranks so far."""
        allocator, config = model.base_model.rankallocator, model.peft_config["default"]
        running = {name: dict(getattr(allocator, name)) for name in ("ipt", "exp_avg_ipt", "exp_avg_unc")}
        return {**running, "rank_pattern": config.rank_pattern}

    def load_state(self, model: Any, state: Mapping[str, Any]) -> None:
        """Take them back."""
        allocator = model.base_model.rankallocator
        device = next(model.parameters()).device
        for name in ("ipt", "exp_avg_ipt", "exp_avg_unc"):
            setattr(allocator, name, {k: v.to(device) for k, v in state[name].items()})
        model.peft_config["default"].rank_pattern = state["rank_pattern"]
