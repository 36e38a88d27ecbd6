"""LoHa and LoKr: updates as products that reach a high rank with few weights (arXiv 2108.06098, 2309.14859)."""

from dataclasses import dataclass

from peft import LoHaConfig, LoKrConfig
from transformers import PreTrainedModel

from tuneforge.methods.base import TargetedMethod
from tuneforge.schema.types import PositiveInt, Probability


@dataclass(frozen=True, kw_only=True)
class LoHa(TargetedMethod):
    """The element-wise product of two low-rank updates: rank r x r for 2 r (in + out) weights."""

    r: PositiveInt = 8
    """Rank of each factor."""
    alpha: PositiveInt = 16
    """The update is scaled by alpha / r."""
    module_dropout: Probability = 0.0
    """Probability that a module's whole update is left out of a step."""

    def peft_config(self, model: PreTrainedModel) -> LoHaConfig:
        """LoHa's."""
        return LoHaConfig(
            r=self.r,
            alpha=self.alpha,
            module_dropout=self.module_dropout,
            modules_to_save=self.modules_to_save,
            **self.targets(model),
        )


@dataclass(frozen=True, kw_only=True)
class LoKr(LoHa):
    """The Kronecker product of a small matrix and a low-rank one."""

    decompose_factor: int = -1
    """Size of the small matrix; -1: near the square root of the width."""

    def peft_config(self, model: PreTrainedModel) -> LoKrConfig:  # type: ignore[override]
        """LoKr's."""
        return LoKrConfig(
            r=self.r,
            alpha=self.alpha,
            module_dropout=self.module_dropout,
            decompose_factor=self.decompose_factor,
            modules_to_save=self.modules_to_save,
            **self.targets(model),
        )
