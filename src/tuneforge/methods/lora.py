"""LoRA: low-rank adapters beside frozen linear layers (arXiv 2106.09685)."""

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.schema.types import PositiveInt, Probability


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters of rank `r`; the base is frozen."""

    r: PositiveInt = 16
    """Rank: 8 standard, 16 instruction and chat, 32 code, 64 domain."""
    lora_alpha: PositiveInt = 32
    """The update is scaled by lora_alpha / r."""
    lora_dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """all-linear (every linear layer but the head), or names of linear modules."""

    trains_base = False
    """Whether the base's own weights are trained: if so they are kept in fp32."""

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """How the base is quantised while it loads; None: not at all."""
        return None

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with new adapters, or with those of the folder `adapter` to go on from. Adapters are fp32.

        Raises:
            TuneforgeError: `target_modules` matches nothing, or `adapter` cannot be loaded on this base.
        """
        try:
            if adapter is not None:
                return PeftModel.from_pretrained(model, adapter, is_trainable=True)
            return get_peft_model(model, self._config())
        except (ValueError, RuntimeError, OSError) as error:
            first = str(error).strip().splitlines()[0]
            path = "model.adapter" if adapter is not None else "method.target_modules"
            linears = sorted({n.rpartition(".")[2] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
            raise TuneforgeError(
                "adapter-does-not-fit", first, path=path, fix=f"linear modules here: {', '.join(linears)}"
            ) from error

    def _config(self) -> LoraConfig:
        return LoraConfig(
            r=self.r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=self.target_modules,
            bias="none",
            task_type="CAUSAL_LM",
        )
