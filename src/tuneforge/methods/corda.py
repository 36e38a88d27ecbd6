"""CorDA: LoRA that starts from the base's main directions as seen by train rows (arXiv 2406.05223)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from transformers import PreTrainedModel

from tuneforge.data.batches import Batch, real_tokens
from tuneforge.methods.lora import Lora
from tuneforge.schema.types import PositiveInt


@dataclass(frozen=True, kw_only=True)
class Corda(Lora):
    """LoRA over a base that part of has gone into the adapters; saved as plain LoRA on the original base."""

    observes = True
    adapts_experts = False
    rewriting = ("corda",)

    init_lora_weights: Literal["corda"] = "corda"  # type: ignore[assignment]
    """How adapters start."""
    target_parameters: Literal["auto"] = "auto"
    """Experts of a mixture are no matrices that could be decomposed: they stay as they are."""
    num_batches: PositiveInt = 16
    """Batches of train rows whose covariance is measured (PEFT: about width / tokens a row x 128 rows)."""

    @property
    def num_observed(self) -> int:
        """Asked for by `observe`."""
        return self.num_batches

    def observe(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        """Decompose each target against the covariance of its inputs; PEFT keeps the parts on the modules."""

        def run() -> None:
            for batch in batches:
                # PEFT's hook takes one row at a time, and knows no padding.
                rows = zip(batch["input_ids"], batch["position_ids"], real_tokens(batch), strict=True)
                for ids, positions, real in rows:
                    kept: Any = {"input_ids": ids[real][None], "position_ids": positions[real][None]}
                    model(**kept, use_cache=False, **kept_logits)

        kept_logits = self.logits_kept(model)
        with torch.no_grad():
            preprocess_corda(model, self.peft_config(model), run_model=run)

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with adapters that hold the observed directions, or with those of `adapter`."""
        tuned = super().apply(model, adapter)
        # They are saved as a plain LoRA, whose config must not speak of another start.
        config: Any = tuned.peft_config["default"]
        config.corda_config = None
        return tuned

    def initialisation(self) -> dict[str, Any]:
        """The directions that matter most to the rows; the paper's other mode wants rows of what is to be kept."""
        return {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="ipm")}
