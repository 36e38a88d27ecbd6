"""One process on one device."""

from lightning.pytorch.strategies import SingleDeviceStrategy

from tuneforge.machine import Machine


def single(machine: Machine, /) -> SingleDeviceStrategy:
    """Lightning's single-device strategy on the device of this process."""
    return SingleDeviceStrategy(device=machine.device, accelerator=None)
