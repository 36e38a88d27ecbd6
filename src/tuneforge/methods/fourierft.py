"""FourierFT: a few trained coefficients of each update's Fourier transform (arXiv 2405.03003)."""

from dataclasses import dataclass

from peft import FourierFTConfig
from transformers import PreTrainedModel

from tuneforge.methods.base import TargetedMethod
from tuneforge.schema.types import Count, PositiveFloat, Size


@dataclass(frozen=True, kw_only=True)
class FourierFt(TargetedMethod):
    """Trains `n_frequency` numbers a matrix, whatever its size."""

    footprint = "vectors"

    n_frequency: Size = 1000
    """Coefficients a matrix (the paper's 1000 for 7B models)."""
    scaling: PositiveFloat = 150.0
    """The update is scaled by this (the paper: 100 to 150 for language models, 300 for instruction tuning)."""
    random_loc_seed: Count = 777
    """Seeds which frequencies are trained."""

    def peft_config(self, model: PreTrainedModel) -> FourierFTConfig:
        """FourierFT's."""
        return FourierFTConfig(
            n_frequency=self.n_frequency,
            scaling=self.scaling,
            random_loc_seed=self.random_loc_seed,
            **self.shared(model),
        )
