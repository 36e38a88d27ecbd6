"""The plainest strategy that does the job."""

from typing import Literal

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from tuneforge.machine import Machine
from tuneforge.strategies.ddp import ddp
from tuneforge.strategies.fsdp import Fsdp, fsdp
from tuneforge.strategies.single import single


def auto(
    machine: Machine, /, *, process_group_backend: Literal["auto", "nccl", "gloo"] = "auto"
) -> DDPStrategy | Fsdp | SingleDeviceStrategy:
    """One process: single. Several: ddp where the model fits on a device, else fsdp."""
    if machine.world_size == 1:
        return single(machine)
    chosen = ddp if machine.holds_all else fsdp
    return chosen(machine, process_group_backend=process_group_backend)
