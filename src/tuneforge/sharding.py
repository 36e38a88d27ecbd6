"""What a strategy that splits weights over devices is asked beside what Lightning asks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from tuneforge.compat import is_4bit

Place = tuple[slice, ...]
"""A place in a tensor: a slice of each dimension."""


@runtime_checkable
class Sharding(Protocol):
    """A strategy under which a process holds parts of the weights. Every method is called by all processes together."""

    def shard(self, model: nn.Module, *, trains_base: bool) -> None:
        """Leave this process its part of each parameter; the forward pass gathers them layer by layer."""

    def gathered(self, model: nn.Module, *, everything: bool) -> AbstractContextManager[Any]:
        """Within, the first process has weights whole, in host memory, so that they can be saved.

        Args:
            model: the split model.
            everything: not the trained weights alone.
        """


@runtime_checkable
class ReadingParts(Protocol):
    """A strategy that splits weights before there are any, and then reads each process's part."""

    def read(self, model: nn.Module, weights: Mapping[str, str], part: Callable[[str, Place], Tensor]) -> None:
        """Fill the parts of weights that have none yet.

        Args:
            model: the split model.
            weights: name of a parameter -> what `part` calls it.
            part: (name, place in the weight) -> what is stored there.
        """


@runtime_checkable
class SavingParts(Protocol):
    """A strategy under which each process can write its own part of a checkpoint."""

    saves_parts: bool
    """Each does; else the first process gathers and writes everything."""


@runtime_checkable
class ClippingInStep(Protocol):
    """A strategy that clips gradients within the optimizer step, to the trainer's `gradient_clip_val`."""

    def norm_of_step(self) -> Tensor:
        """Norm of the last step's gradients over all devices, before they were clipped; shape []."""


def in_parts(model: nn.Module) -> None:
    """Under FSDP, let go of what is gathered: after a forward pass the outermost weights still are.

    After an evaluation they are not what is trained, and a guard that looks at weights would find others than before.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def put_in_place(
    model: nn.Module, whole: Callable[[nn.Parameter], Tensor], *, everything: bool, keeps: bool
) -> Iterator[None]:
    """Within, whole weights stand where the parts of split ones do, made one after another; the parts come back.

    Args:
        model: the split model.
        whole: puts a parameter together; called by all processes.
        everything: not the trained weights alone.
        keeps: this process holds what is made; the others only help to make it.
    """
    every = [(m, n, p) for m in model.modules() for n, p in m.named_parameters(recurse=False)]
    places = [(m, n, p) for m, n, p in every if everything or p.requires_grad]
    made: dict[nn.Parameter, nn.Parameter] = {}
    try:
        for module, name, parameter in places:
            if parameter not in made:  # tied weights are one parameter in two places
                full = whole(parameter)
                made[parameter] = nn.Parameter(full, parameter.requires_grad) if keeps else parameter
            module._parameters[name] = made[parameter]
        yield
    finally:
        for module, name, parameter in places:
            module._parameters[name] = parameter


def shape_of(parameter: nn.Parameter) -> torch.Size:
    """The shape of a whole parameter; that of the placeholder which DeepSpeed's ZeRO-3 leaves is [0]."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def num_weights(model: nn.Module, *, trained: bool = False) -> int:
    """Weights of a model, or of its trained part; a packed 4-bit tensor counts as the weights it holds, two a byte."""
    packed = {module.weight for module in model.modules() if is_4bit(module)}
    return sum(
        shape_of(p).numel() * (2 * p.element_size() if p in packed else 1)
        for p in model.parameters()
        if p.requires_grad or not trained
    )


def clip_gradients(parameters: Sequence[nn.Parameter], limit: float) -> Tensor:
    """torch's `clip_grad_norm_`, also over weights that are split over several meshes of devices.

    Returns:
        The norm of all gradients as it was; shape [].
    """
    of_mesh: dict[DeviceMesh | None, list[nn.Parameter]] = {}
    for parameter in [p for p in parameters if p.grad is not None]:
        mesh = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
        of_mesh.setdefault(mesh, []).append(parameter)
    norms = []
    for own in of_mesh.values():
        norm = nn.utils.get_total_norm([p.grad for p in own if p.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms or [torch.zeros(())]))
    for own in of_mesh.values():
        nn.utils.clip_grads_with_norm_(own, limit, total)
    return total
