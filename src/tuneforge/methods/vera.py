"""VeRA: random matrices that all layers share, and two trained vectors a layer (arXiv 2310.11454)."""

from dataclasses import dataclass

from peft import VeraConfig
from transformers import PreTrainedModel

from tuneforge.methods.base import TargetedMethod
from tuneforge.schema.types import Count, PositiveFloat, Probability, Size


@dataclass(frozen=True, kw_only=True)
class Vera(TargetedMethod):
    """Trains out + r numbers a matrix; the random matrices are saved with them."""

    footprint = "vectors"

    r: Size = 256
    """Rank of the shared matrices (the paper's 256 to 1024)."""
    vera_dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    d_initial: PositiveFloat = 0.1
    """Where the r numbers start."""
    projection_prng_key: Count = 0
    """Seeds the random matrices."""

    def peft_config(self, model: PreTrainedModel) -> VeraConfig:
        """VeRA's; the projections are saved, so that nothing hangs on a generator's version."""
        return VeraConfig(
            r=self.r,
            vera_dropout=self.vera_dropout,
            d_initial=self.d_initial,
            projection_prng_key=self.projection_prng_key,
            save_projection=True,
            **self.shared(model),
        )
