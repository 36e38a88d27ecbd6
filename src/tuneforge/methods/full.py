"""Full fine-tuning: every weight is trained."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from tuneforge.console import say
from tuneforge.method import Method
from tuneforge.methods.modules import beyond_text


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
        """The model with every parameter trainable that text passes through."""
        model.requires_grad_(True)
        unused = beyond_text(model)
        frozen = [p for name, p in model.named_parameters() if name.rpartition(".")[0] in unused]
        for parameter in frozen:
            parameter.requires_grad_(False)
        if frozen:
            say("method=full: the parts of this model that are not for text stay as they are: text does not reach them")
        return model
