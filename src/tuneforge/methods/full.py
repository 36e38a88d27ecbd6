"""Full fine-tuning: every weight is trained."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Full:
    """Every weight, kept in fp32 with autocast where the device computes in 16 bits."""

    trains_base = True
    """Weights in bf16 would round small updates away, so they are loaded in fp32."""

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """None: trained weights are never quantised."""
        return None

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PreTrainedModel:
        """The model with every parameter trainable."""
        return model.requires_grad_(True)
