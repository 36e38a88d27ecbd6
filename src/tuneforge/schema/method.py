"""What changes in the weights."""

from dataclasses import dataclass
from typing import ClassVar

from tuneforge.schema.types import LearningRate, Pluggable, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Method(Pluggable):
    """A way of changing a model; its own knobs come from its `_target_`."""

    group: ClassVar[str] = "method"

    name: str
    """The option's name, as run.json records it."""
    lr: dict[str, LearningRate]
    """Starting learning rate for each objective; `optim.lr` picks from it."""
    clip: PositiveFloat = 1.0
    """Global gradient norm to clip to; `trainer.gradient_clip_val` reads it."""
