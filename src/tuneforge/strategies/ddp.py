"""Distributed data parallel: one replica a device (arXiv 2006.15704)."""

from typing import Literal

from lightning.pytorch.strategies import DDPStrategy

from tuneforge.machine import Machine


def ddp(machine: Machine, /, *, process_group_backend: Literal["auto", "nccl", "gloo"] = "auto") -> DDPStrategy:
    """Lightning's DDP, with the backend that suits the device."""
    backend = backend_of(machine, process_group_backend)
    return DDPStrategy(process_group_backend=backend, find_unused_parameters=False)


def backend_of(machine: Machine, wanted: str) -> str:
    """What the processes talk through: nccl on CUDA, gloo elsewhere, unless something is asked for."""
    if wanted != "auto":
        return wanted
    return "nccl" if machine.device.type == "cuda" else "gloo"
