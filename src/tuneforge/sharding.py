"""What a strategy that splits weights over devices is asked beside what Lightning asks."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Sharding(Protocol):
    """A strategy under which a process holds parts of the weights. Every method is called by all processes together."""

    def shard(self, model: nn.Module, *, trains_base: bool) -> None:
        """Leave this process its part of each parameter; the forward pass gathers them layer by layer."""

    def read(self, model: nn.Module, weights: Mapping[str, str], rows: Callable[[str, int, int], Tensor]) -> None:
        """Fill the parts of weights that have none yet.

        Args:
            model: the split model.
            weights: name of a parameter -> what `rows` calls it.
            rows: (name, first, last + 1) -> those rows of the weight.
        """

    def gathered(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Within, the first process has the trained weights whole, in host memory, so that they can be saved."""
