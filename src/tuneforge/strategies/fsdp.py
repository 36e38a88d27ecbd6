"""Fully sharded data parallel (arXiv 2304.11277): weights, gradients and optimizer states split over the devices."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer
from transformers.modeling_layers import GradientCheckpointingLayer

from tuneforge.artifacts import parts
from tuneforge.artifacts.checkpoint_io import AtomicCheckpointIO, load
from tuneforge.artifacts.whole import Ranks
from tuneforge.exchange import WORKING
from tuneforge.machine import Machine
from tuneforge.sharding import Place, in_parts, put_in_place
from tuneforge.strategies.ddp import backend_of
from tuneforge.streamed import without_memory


def fsdp(
    machine: Machine,
    /,
    *,
    offload: Literal["none", "cpu"] = "none",
    process_group_backend: Literal["auto", "nccl", "gloo"] = "auto",
) -> "Fsdp":
    """FSDP2 over all processes; with `offload=cpu`, a device's part waits in host memory, where the step is done."""
    return Fsdp(machine, backend_of(machine, process_group_backend), offload)


class Fsdp(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with trained weights alone in checkpoints, which any strategy reads.

    Lightning's own checkpoints bypass its CheckpointIO and hold the frozen base.
    """

    saves_parts = False

    def __init__(self, machine: Machine, backend: str, offload: str = "none") -> None:
        # Parts that wait in host memory are gathered there: nccl does not.
        backends = "cpu:gloo,cuda:nccl" if offload != "none" and backend == "nccl" else backend
        super().__init__(
            machine.data_parallel_size,
            machine.tensor_parallel_size,
            save_distributed_checkpoint=False,
            process_group_backend=backends,
        )
        self.offload = offload
        self._sharded: FSDPModule | None = None
        self._accumulates_apart = False
        self._writers: ProcessGroup | None = None
        """What the threads that write checkpoints talk through: the other groups are the training thread's."""

    # ---- splitting

    def shard(self, model: nn.Module, *, trains_base: bool) -> None:
        """Split each layer by itself, and the rest together: embeddings, the last norm, the head."""
        without_memory(model)
        mesh = self.device_mesh["data_parallel"]
        pinned = self.root_device.type == "cuda"
        policy = OffloadPolicy() if self.offload == "none" else CPUOffloadPolicy(pin_memory=pinned)
        for layer in [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]:
            fully_shard(layer, mesh=mesh, offload_policy=policy)
        self._sharded = fully_shard(model, mesh=self._outer_mesh(), offload_policy=policy)
        place = self.root_device if self.offload == "none" else torch.device(self.offload)
        # `to_empty` would take the adapters' values too.
        model._apply(lambda t: torch.empty_like(t, device=place) if t.is_meta else t)  # type: ignore[no-untyped-call]
        # Generation calls the model under PEFT's wrapper: embeddings and head must be gathered around it as well.
        register_fsdp_forward_method(model, "generate")
        # Unsynchronised gradients are whole on every device: nothing for adapters, twice the model for a full run.
        self._accumulates_apart = not trains_base

    def _outer_mesh(self) -> DeviceMesh:
        """The devices that what is outside of layers is split over."""
        return self.device_mesh["data_parallel"]

    def read(self, model: nn.Module, weights: Mapping[str, str], part: Callable[[str, Place], Tensor]) -> None:
        """Read this process's part of each weight."""
        parameters = dict(model.named_parameters())
        for name, stored in weights.items():
            parameter = parameters[name]
            assert isinstance(parameter, DTensor)
            with torch.no_grad():
                parameter.to_local().copy_(part(stored, place_of(parameter)))

    def fill(self, module: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Copy this process's part of each weight."""
        in_parts(module)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in state:
                    parameter.copy_(split(state[name].to(parameter.device), parameter))

    def gathered(self, model: nn.Module, *, everything: bool) -> AbstractContextManager[None]:
        """Put whole weights, one after another, in the place of the parts, which come back afterwards."""
        in_parts(model)
        return put_in_place(model, whole, everything=everything, keeps=self.is_global_zero)

    def model_to_device(self) -> None:
        """Move what is not there yet; where parts wait in host memory, buffers alone."""
        assert self.model is not None
        # An evaluation before leaves the outermost weights gathered: an optimizer made now would hold the copies.
        in_parts(self.model)
        if self.offload == "none":
            super().model_to_device()
            return
        for module in self.model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.root_device)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Between the micro-batches of a step, add up gradients without sending them."""
        blocked = self._sharded if self._accumulates_apart else None
        if blocked is not None:
            blocked.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            if blocked is not None:
                blocked.set_requires_gradient_sync(True)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """Leave nothing gathered: what looks at weights after an evaluation finds parts, as it does in training."""
        found = super().validation_step(*args, **kwargs)
        assert self.model is not None
        in_parts(self.model)
        return found

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        """Over what has read different rows."""
        return super().reduce(tensor, group or self.device_mesh["data_parallel"].get_group(), reduce_op)

    # ---- checkpoints

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights: whole, on the first process, or each process's parts."""
        assert self.lightning_module is not None
        in_parts(self.lightning_module)
        trained = {n: p.detach() for n, p in self.lightning_module.named_parameters() if p.requires_grad}
        return trained if self.saves_parts else self._on_first({n: whole(p) for n, p in trained.items()})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state: as a single process would have it, on the first one, or with each process's parts."""
        plain: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state_dict()
        if self.saves_parts:
            return plain
        state = {i: {k: whole(v) for k, v in state.items()} for i, state in plain["state"].items()}
        return self._on_first({**plain, "state": state})

    def _on_first(self, found: dict[str, Any]) -> dict[str, Any]:
        return found if self.is_global_zero else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write what this process has: its parts, or as the first one everything."""
        if self.saves_parts:
            assert isinstance(self.checkpoint_io, AtomicCheckpointIO)
            rest, split = parts.take_apart(checkpoint)
            own = {n: parts.Part(t.to_local(), place_of(t)) for n, t in split.items()}
            self.checkpoint_io.save_part(rest, own, Path(filepath), Ranks(self.global_rank, self._share))
        elif self.is_global_zero:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def _share(self, value: Any) -> list[Any]:
        """Each process's value in all of them, between the threads that write."""
        found: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(found, value, self._writers)
        return found

    def setup_environment(self) -> None:
        """Connect the processes, and the threads in them that write checkpoints."""
        super().setup_environment()
        self._writers = self._writers or torch.distributed.new_group(backend="gloo", timeout=WORKING)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read by every process, which keeps its part of weights and optimizer states."""
        assert self.lightning_module is not None
        in_parts(self.lightning_module)
        checkpoint: dict[str, Any] = load(Path(checkpoint_path), self._own_rows())
        self.fill(self.lightning_module, checkpoint["state_dict"])
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=False):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {i: {k: split(v, parameters[i]) for k, v in own.items()} for i, own in saved["state"].items()}
            optimizer.load_state_dict({**saved, "state": state})
        return checkpoint

    def _own_rows(self) -> parts.Like:
        """Read this process's rows alone: of weights in their place, of states where there is an optimizer."""
        assert self.lightning_module is not None
        weights = dict(self.lightning_module.named_parameters())
        of_states = [p for o in self.optimizers for group in o.param_groups for p in group["params"]]

        def like(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor | None:
            weight, number, _ = parts.place_of(name)
            if weight is not None:
                return weights[weight].detach()
            return torch.empty_like(of_states[number], dtype=dtype) if of_states else None

        return like


def whole(value: Any) -> Any:
    """A split tensor put together, in host memory; anything else as it is. Called by all processes."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def split(value: Any, like: Tensor) -> Any:
    """This process's part of a tensor of a split parameter's shape; anything else, a part among it, as it is."""
    whole_of_it = isinstance(value, Tensor) and not isinstance(value, DTensor) and value.shape == like.shape
    if not isinstance(like, DTensor) or not whole_of_it:
        return value
    own = value[place_of(like)].to(like.device, copy=True)
    return DTensor.from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def place_of(parameter: DTensor) -> Place:
    """Where in the whole weight this process's part is."""
    sizes, first = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))
