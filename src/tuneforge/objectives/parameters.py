"""Which trainable parameters decay, and which learn at a rate of their own."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from peft.tuners.trainable_tokens import TrainableTokensLayer
from torch import nn

from tuneforge.sharding import shape_of


def parameter_groups(
    model: nn.Module, weight_decay: float, lr: float, scale: Callable[[str], float] = lambda _: 1.0
) -> list[dict[str, Any]]:
    """Trainable parameters by decay and rate: matrices decay; norms, biases, scales and embeddings do not.

    A scale may be stored as [n, 1] (IA3, AdaLoRA's singular values): such a tensor is a matrix only as the weight of a
    linear layer, as LoRA's at rank 1 is. Decay would pull IA3's scales from 1 to 0, and switch layers off.

    Args:
        model: the whole model.
        weight_decay: of the matrices.
        lr: the rate of a parameter whose scale is 1.
        scale: full name of a parameter -> what its rate is multiplied by.
    """
    kinds = (nn.Embedding, TrainableTokensLayer)
    embeddings = {id(p) for m in model.modules() if isinstance(m, kinds) for p in m.parameters()}
    linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    found: dict[tuple[bool, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            wide = sum(size > 1 for size in shape_of(parameter)) >= 2 or id(parameter) in linears
            decays = wide and len(shape_of(parameter)) >= 2 and id(parameter) not in embeddings
            found[decays, scale(name)].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0, "lr": lr * factor}
        for (decays, factor), parameters in sorted(found.items(), key=lambda group: group[0], reverse=True)
    ]
