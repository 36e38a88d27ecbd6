"""QLoRA: LoRA over a quantised base, in 4-bit NF4 (arXiv 2305.14314) or 8-bit (LLM.int8, arXiv 2208.07339)."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from tuneforge.methods.lora import Lora
from tuneforge.schema.types import NonNegative


@dataclass(frozen=True, kw_only=True)
class QLora(Lora):
    """LoRA whose frozen base is stored in 4 bits; matrix products run in the compute type."""

    quantises = 4

    double_quant: bool = True
    """Quantise the quantisation constants too: 0.127 bits a parameter instead of 0.5 (section 3 of the paper)."""

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """NF4, computing and padding in `dtype`."""
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=dtype,
            # The packed weights look like weights of the compute type, which FSDP2 can split.
            bnb_4bit_quant_storage=dtype,
        )


@dataclass(frozen=True, kw_only=True)
class QLora8bit(Lora):
    """LoRA whose frozen base is stored in 8 bits, outlying activations computed in 16."""

    exact = False
    quantises = 8

    int8_threshold: NonNegative = 6.0
    """Activations above this are outliers (section 3.2 of the paper)."""

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """LLM.int8."""
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.int8_threshold)
