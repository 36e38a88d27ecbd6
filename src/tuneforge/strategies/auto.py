"""The plainest strategy that does the job."""

from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from tuneforge.machine import Machine
from tuneforge.strategies.ddp import ddp
from tuneforge.strategies.single import single


def auto(machine: Machine, /) -> DDPStrategy | SingleDeviceStrategy:
    """One process: single. Several: ddp."""
    return single(machine) if machine.world_size == 1 else ddp(machine)
