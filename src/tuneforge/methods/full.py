"""Full fine-tuning: every weight is trained."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from tuneforge.method import Method


@dataclass(frozen=True, kw_only=True)
class Full(Method):
    """Every weight, kept in fp32 with autocast where the device computes in 16 bits."""

    trains_base = True
    new_tokens = True
    stores_fp32 = True
    """Weights in bf16 would round small updates away, so they are loaded in fp32."""

    @property
    def reads_base(self) -> bool:
        """Not at all."""
        return False

    @property
    def starts_as_base(self) -> bool:
        """Nothing is added."""
        return True

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PreTrainedModel:
        """The model with every parameter trainable."""
        return model.requires_grad_(True)
