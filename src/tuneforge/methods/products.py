"""LoHa and LoKr: updates as products that reach a high rank with few weights (arXiv 2108.06098, 2309.14859)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from peft import LoHaConfig, LoKrConfig
from transformers import PreTrainedModel

from tuneforge.methods.base import TargetedMethod
from tuneforge.schema.types import Probability, Range, Size


@dataclass(frozen=True, kw_only=True)
class LoHa(TargetedMethod):
    """The element-wise product of two low-rank updates: rank r x r for 2 r (in + out) weights."""

    not_on_conv1d: ClassVar[Mapping[str, str]] = {"": "LoHa has no layer for it"}

    r: Size = 8
    """Rank of each factor."""
    alpha: Size = 16
    """The update is scaled by alpha / r."""
    module_dropout: Probability = 0.0
    """Probability that a module's whole update is left out of a step."""

    def peft_config(self, model: PreTrainedModel) -> LoHaConfig:
        """LoHa's."""
        return LoHaConfig(
            r=self.r,
            alpha=self.alpha,
            module_dropout=self.module_dropout,
            **self.shared(model),
        )


@dataclass(frozen=True, kw_only=True)
class LoKr(LoHa):
    """The Kronecker product of a small matrix and a low-rank one."""

    not_on_conv1d: ClassVar[Mapping[str, str]] = {"": "LoKr has no layer for it"}

    decompose_factor: Literal[-1] | Annotated[int, Range(ge=2, le=1_000_000)] = -1
    """Size of the small matrix; -1: near the square root of the width."""

    def peft_config(self, model: PreTrainedModel) -> LoKrConfig:  # type: ignore[override]
        """LoKr's."""
        return LoKrConfig(
            r=self.r,
            alpha=self.alpha,
            module_dropout=self.module_dropout,
            decompose_factor=self.decompose_factor,
            **self.shared(model),
        )
