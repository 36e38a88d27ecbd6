"""The constraint that a field's type can carry, and the few constrained types that many fields share."""

from dataclasses import dataclass
from typing import Annotated, ClassVar


@dataclass(frozen=True)
class Range:
    """Bounds of a number, as `Annotated[float, Range(ge=0, lt=1)]`."""

    ge: float | None = None
    """Smallest allowed value."""
    gt: float | None = None
    """The value must be above this."""
    le: float | None = None
    """Largest allowed value."""
    lt: float | None = None
    """The value must be below this."""

    def __str__(self) -> str:
        signs = {">=": self.ge, ">": self.gt, "<=": self.le, "<": self.lt}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None)

    def holds(self, value: float) -> bool:
        """Whether `value` is inside; NaN never is."""
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )


@dataclass(frozen=True)
class Home:
    """A path on this machine, or a name that is none: `~` at its start becomes the home folder."""

    def __str__(self) -> str:
        return "whose ~ is a user's home folder"


LocalPath = Annotated[str, Home()]
PositiveInt = Annotated[int, Range(ge=1)]
Count = Annotated[int, Range(ge=0)]
Size = Annotated[int, Range(ge=1, le=1_000_000)]
"""A width, rank or number of vectors: memory is allocated for it."""
PositiveFloat = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Fraction = Annotated[float, Range(ge=0, le=1)]
Probability = Annotated[float, Range(ge=0, lt=1)]
LearningRate = Annotated[float, Range(gt=0, le=100)]
Factor = Annotated[float, Range(gt=0, le=1_000_000)]
"""Multiplies a learning rate."""
Decay = Annotated[float, Range(ge=0, le=100)]
"""Weight decay, a share of the learning rate."""
Epsilon = Annotated[float, Range(gt=0, le=1)]
"""Added to the root of a second moment: 0 divides by 0 where a gradient is 0, and a large one stops all learning."""

LARGEST = 1e12
"""No option takes a number beyond this, in either direction, nor one that is not finite."""
LARGEST_INT = 2**63 - 1
"""Integers fit into 64 bits."""


class Pluggable:
    """Base of the nodes whose `_target_` names code: that code's own options are allowed beside the fields."""

    group: ClassVar[str] = ""
    """The group whose options' targets are allowed here."""
    needs_target: ClassVar[bool] = True
    """Whether the node must have a `_target_`."""
