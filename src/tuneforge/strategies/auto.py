"""The plainest strategy that does the job."""

from typing import Literal

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from tuneforge.machine import Machine
from tuneforge.strategies.ddp import ddp
from tuneforge.strategies.single import single


def auto(
    machine: Machine, /, *, process_group_backend: Literal["auto", "nccl", "gloo"] = "auto"
) -> DDPStrategy | SingleDeviceStrategy:
    """One process: single. Several: ddp."""
    if machine.world_size == 1:
        return single(machine)
    return ddp(machine, process_group_backend=process_group_backend)
