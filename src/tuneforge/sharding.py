"""What a strategy that splits weights over devices is asked beside what Lightning asks."""

from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class Sharding(Protocol):
    """A strategy under which a process holds parts of the weights. Every method is called by all processes together."""

    def shard(self, model: nn.Module, *, trains_base: bool) -> None:
        """Leave this process its part of each parameter; the forward pass gathers them layer by layer."""

    def gathered(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Within, the first process has the trained weights whole, in host memory, so that they can be saved."""
