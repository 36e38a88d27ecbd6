"""Tensor parallelism (arXiv 1909.08053) within groups of devices, fully sharded data parallel between them."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import gcd
from typing import Any, Literal

from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from transformers import PretrainedConfig

from tuneforge.adapters import base_model
from tuneforge.errors import TuneforgeError
from tuneforge.machine import Machine
from tuneforge.schema.types import PositiveInt
from tuneforge.strategies.ddp import backend_of
from tuneforge.strategies.fsdp import Fsdp
from tuneforge.streamed import without_memory

STYLES: Mapping[str, Callable[[], ParallelStyle]] = {
    "colwise": ColwiseParallel,
    "rowwise": RowwiseParallel,
    # A norm over the width of a head, of which each device has its own: their gradients are added up.
    "replicated_with_grad_allreduce": partial(SequenceParallel, use_local_output=True),
}
"""What transformers' plans call a way of splitting a module -> torch's."""

DIVIDED = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
"""Keys of a model's config.json that are dealt out."""


def fsdp_tp(
    machine: Machine,
    /,
    *,
    tensor_parallel_size: PositiveInt = 2,
    process_group_backend: Literal["auto", "nccl", "gloo"] = "auto",
) -> "FsdpTp":
    """Groups of `tensor_parallel_size` neighbouring processes, and FSDP2 between the groups.

    A group passes activations around in each layer, so that its devices should be those with the fastest links.
    """
    assert machine.tensor_parallel_size == tensor_parallel_size
    return FsdpTp(machine, backend_of(machine, process_group_backend))


class FsdpTp(Fsdp):
    """FSDP2 over matrices that are split already, as the model's own plan has it."""

    def shard(self, model: nn.Module, *, trains_base: bool) -> None:
        """Split the matrices of layers within the group, then everything as FSDP2 does."""
        without_memory(model)
        parallelise(model, self.device_mesh["tensor_parallel"])
        super().shard(model, trains_base=trains_base)

    def _outer_mesh(self) -> DeviceMesh:
        """All devices: embeddings and head, in no plan, would else be whole on each device of a group."""
        return init_device_mesh(self.device_mesh.device_type, (self.world_size,))


def check(architecture: PretrainedConfig, size: int) -> None:
    """Refuse a model that groups of `size` devices cannot share.

    Raises:
        TuneforgeError: it has no plan, one in ways that are not here, or counts that `size` does not divide.
    """
    text = architecture.get_text_config()
    strange = sorted(set((text.base_model_tp_plan or {}).values()) - STYLES.keys())
    if strange or not text.base_model_tp_plan:
        why = f"splits layers in ways that are not here ({', '.join(strange)})" if strange else "has none"
        raise TuneforgeError(
            "no-tensor-plan",
            f"needs transformers' plan of how a model's matrices are split, and that of {text.model_type} {why}",
            path="strategy",
            fix="use strategy=fsdp",
        )
    known = text.to_dict()
    counts: dict[str, int] = {key: known[key] for key in DIVIDED if isinstance(known.get(key), int)}
    for key, count in counts.items():
        if count % size:
            most = gcd(*counts.values())
            possible = [str(n) for n in range(2, most + 1) if not most % n]
            raise TuneforgeError(
                "does-not-divide",
                f"is {size}, and the model has {key}={count}, which is no multiple of it",
                path="strategy.tensor_parallel_size",
                fix=f"set it to {' or '.join(possible)}" if possible else "use strategy=fsdp",
            )


def parallelise(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leave each device of a group its part of the layers' matrices, and of the adapters beside them."""
    body: Any = base_model(model).base_model
    plan = body.config.get_text_config().base_model_tp_plan
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, module in list(body.named_modules()):
        style = plan.get(re.sub(r"\.\d+\.", ".*.", name))
        if style is not None:
            for matrix in _matrices(module, style):
                # Every process has the same weights, or none yet: nothing has to be sent.
                parallelize_module(matrix, mesh, STYLES[style](), src_data_rank=None)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained[name])


def _matrices(module: nn.Module, style: str) -> Iterator[nn.Module]:
    """What of a module is split: of an adapted one the base, and that of A and B which stands at its split side."""
    if isinstance(module, LoraLayer):
        yield module.get_base_layer()
        yield from (module.lora_B if style == "colwise" else module.lora_A).values()
    else:
        yield module
