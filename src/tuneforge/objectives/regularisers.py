"""Against forgetting: elastic weight consolidation, and the divergence from the base."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax

from tuneforge.context import Context


class Consolidation:
    """Elastic weight consolidation: strength / 2 * sum of F (w - w0)^2 over the trained weights (arXiv 1612.00796).

    F is the diagonal of the Fisher information on general rows, as mean squared gradient of their loss: what matters to
    them is held, the rest is free. For adapters, w0 is the adapter's start.
    """

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.importance: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}

    def measure(self, module: Any, context: Context) -> None:
        """Importance and start of every trained weight; a resumed run has both from its checkpoint."""
        if self.importance:
            return
        own = {n: p for n, p in module.model.named_parameters() if p.requires_grad}
        totals = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in own.items()}
        awake = module.training
        module.eval()
        for batch in context.general_batches(module.device):
            module.zero_grad()
            with module.trainer.precision_plugin.forward_context():
                loss = module.loss_sum(batch) / batch["num_labels"]
            loss.backward()
            for name, parameter in own.items():
                if parameter.grad is not None:
                    totals[name] += parameter.grad.float() ** 2
        module.zero_grad()
        module.train(awake)
        count = max(1, context.num_general)
        self.importance = {n: total / count for n, total in totals.items()}
        self.start = {n: p.detach().float().clone() for n, p in own.items()}

    def penalty(self, model: nn.Module) -> Tensor:
        """The term; shape []."""
        own = dict(model.named_parameters())
        terms = [(f * (own[n].float() - self.start[n]) ** 2).sum() for n, f in self.importance.items()]
        return 0.5 * self.strength * torch.stack(terms).sum()

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"importance": self.importance, "start": self.start}

    def load_state(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back what `state` gave."""
        self.importance = {n: t.to(device) for n, t in state["importance"].items()}
        self.start = {n: t.to(device) for n, t in state["start"].items()}


def divergence(base: Tensor, tuned: Tensor) -> Tensor:
    """KL divergence of the tuned predictions from the base's, summed: logits [tokens, vocabulary]; shape []."""
    return kl_div(log_softmax(tuned, -1), log_softmax(base, -1), reduction="sum", log_target=True)
