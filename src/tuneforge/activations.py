"""What the forward pass keeps for the backward pass, and where."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

OFFLOADED_BYTES = 2**20
"""Smaller tensors stay: moving them costs more than they take."""

_ATEN = torch.ops.aten
_PRODUCTS = {_ATEN.mm.default: 0, _ATEN.addmm.default: 1}
"""Matrix product -> which of its arguments is the left one."""
_ATTENTION = {
    _ATEN._scaled_dot_product_flash_attention.default,
    _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
    _ATEN._scaled_dot_product_efficient_attention.default,
    _ATEN._scaled_dot_product_cudnn_attention.default,
}


def keep_products(width: int) -> Callable[[], Any]:
    """For `checkpoint(context_fn=...)`: keep what is dear to compute, and recompute the rest.

    The results of attention and of matrix products over at least half of `width` (the model's) are kept; norms,
    activations and the products of low-rank adapters, whose results are as large as the base's, are recomputed.
    """

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        left = _PRODUCTS.get(operation)
        dear = operation in _ATTENTION or (left is not None and 2 * args[left].shape[-1] >= width)
        return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE

    return partial(create_selective_checkpoint_contexts, policy)


@contextmanager
def offloaded(model: nn.Module, device_kind: str = "cuda") -> Iterator[None]:
    """Within, what the forward pass saves on devices of this kind waits in pinned host memory for the backward pass.

    Copies are made in the order of the computation, on its own stream. Weights, which the backward pass needs too, and
    small tensors stay where they are.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Any:
        small = tensor.numel() * tensor.element_size() < OFFLOADED_BYTES
        if tensor.device.type != device_kind or small or tensor.untyped_storage().data_ptr() in weights:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=device_kind == "cuda")
        host.copy_(tensor, non_blocking=True)
        return tensor.device, host

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, host = packed
        moved: Tensor = host.to(device, non_blocking=True)
        return moved

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
