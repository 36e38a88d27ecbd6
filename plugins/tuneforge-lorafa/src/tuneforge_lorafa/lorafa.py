"""LoRA-FA (arXiv 2308.03303): LoRA whose A matrices stay as they were drawn, and only B learns.

The gradient of A is what makes LoRA keep the input of every adapter, as wide as the model; the gradient of B needs only
A's output, which is as wide as the rank. Half of the weights, and of the optimizer's states, go with it.

The paper has two versions. The first (2023) freezes A and changes nothing else: that is the default here. The second
(2026), and PEFT's `create_lorafa_optimizer`, also multiply the gradient of B by (A A^T)^-1 / scale^2, so that the whole
weight changes as nearly along its own gradient as a change of B can make it. That is `correct_gradient`, as a hook on B
instead of an optimizer of its own: any optimizer, clipping, schedule and checkpoint then work as they do with LoRA.
It is off, because the rows of a random A are nearly orthogonal where the layer is much wider than the rank: A A^T is
nearly a multiple of the identity, and a constant factor is nothing to AdamW (README.md has the numbers).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.methods.lora import Lora

FROZEN = "lora_A"
"""Not `lora_embedding_A`: PEFT starts an embedding's A at zero, and its B at random. Frozen, it would learn nothing,
and there is nothing to save: what an embedding reads are token ids."""


@dataclass(frozen=True, kw_only=True)
class LoraFA(Lora):
    """Adapters of rank `r` whose first matrix is frozen at its random start."""

    correct_gradient: bool = False
    """Train B along (A A^T)^-1 / scale^2 times its gradient (version 2 of the paper, and PEFT's optimizer)."""

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with new adapters, or with those of the folder `adapter`, A frozen in either.

        Raises:
            TuneforgeError: the correction is asked for together with DoRA, whose update is not linear in B.
        """
        if self.correct_gradient and self.use_dora:
            raise TuneforgeError(
                "correction-with-dora",
                "is for updates that are linear in B, and method.use_dora=true makes them depend on their norm too",
                path="method.correct_gradient",
                fix="drop one of the two",
            )
        tuned = super().apply(model, adapter)
        for _, weight in frozen(tuned):
            weight.requires_grad_(False)
        if self.correct_gradient:
            for first, second, scale in pairs(tuned):
                second.register_hook(corrected(first, scale))  # type: ignore[no-untyped-call]
        return tuned

    def state(self, model: PeftModel) -> dict[str, Any]:
        """A too: checkpoints hold what is trained, and a B without the A that it was trained on is worth nothing."""
        return {**super().state(model), "lorafa": {name: weight.detach().cpu() for name, weight in frozen(model)}}

    def load_state(self, model: PeftModel, state: Mapping[str, Any]) -> None:
        """Take A back; a resumed run has drawn the same one, unless torch's generators have changed."""
        super().load_state(model, state)
        own = dict(frozen(model))
        with torch.no_grad():
            for name, weight in state["lorafa"].items():
                own[name].copy_(weight)


def frozen(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and weight of every A matrix beside a linear layer."""
    return ((n, p) for n, p in model.named_parameters() if FROZEN in n.split("."))


def pairs(model: PeftModel) -> Iterator[tuple[Tensor, nn.Parameter, float]]:
    """A [r, in], B [out, r] and the factor in front of B A, of every adapter."""
    parameters = dict(model.named_parameters())
    for name, first in frozen(model):
        owner, _, rest = name.partition(".lora_")
        layer: Any = model.get_submodule(owner)
        scale: float = layer.scaling[rest.split(".")[1]]
        yield first, parameters[name.replace(".lora_A.", ".lora_B.")], scale


def corrected(first: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
    """What B's gradient is replaced by: the B that changes the weight most nearly as the full gradient would.

    With G the gradient of the weight, B's own is scale * G A^T, and a change of B by X changes the weight by
    scale * X A. The X that makes that nearest to G is G A^T (A A^T)^-1 / scale.
    """

    def hook(gradient: Tensor) -> Tensor:
        a = first.detach().to(gradient.dtype)
        solved: Tensor = torch.linalg.solve(a @ a.T, gradient, left=False)
        return solved / scale**2

    return hook
