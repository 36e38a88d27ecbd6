"""EVA: LoRA whose A matrices start as the main directions of the layers' inputs on train rows (arXiv 2410.07170)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import EvaConfig, PeftModel, get_eva_state_dict
from torch import Tensor
from transformers import PreTrainedModel

from tuneforge.compat import is_4bit
from tuneforge.data.batches import Batch
from tuneforge.data.encode import IGNORE
from tuneforge.errors import TuneforgeError
from tuneforge.methods.lora import Lora
from tuneforge.schema.types import Fraction, PositiveInt

DIRECTIONS = "tuneforge_eva"
"""Where a base keeps what was found, until the adapters are there."""

MOST_PASSES = 100
"""Times that the batches are gone through before the directions are given up."""


@dataclass(frozen=True, kw_only=True)
class Eva(Lora):
    """LoRA that starts from the data; base and saved adapter are as with plain LoRA."""

    observes = True
    adapts_experts = False

    init_lora_weights: Literal["eva"] = "eva"  # type: ignore[assignment]
    """How adapters start."""
    target_parameters: Literal["auto"] = "auto"
    """Experts of a mixture have no inputs of their own that could be watched: they stay as they are."""
    rank_pattern: None = None
    """One rank for all modules: PEFT gives out the ranks of a pattern anew among them."""
    num_batches: PositiveInt = 8
    """Batches of train rows to look at; gone through again until the directions settle."""
    tau: Fraction = 0.99
    """Similarity of the directions before and after a batch at which they count as settled (the paper's)."""

    @property
    def num_observed(self) -> int:
        """Asked for by `observe`."""
        return self.num_batches

    def observe(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        """Find the main directions of each layer's inputs, where a token is to be predicted.

        Raises:
            TuneforgeError: fewer such tokens in each batch than directions, or directions that do not settle.
        """
        tokens = max(int((b["labels"] != IGNORE).sum()) for b in batches)
        if tokens < self.r:
            raise TuneforgeError(
                "too-little-to-observe",
                f"looks for {self.r} directions, and no batch has more than {tokens} supervised tokens",
                path="method.r",
                fix=f"set method.r={max(tokens, 1)} or less",
            )
        passes = 0

        def forward(base: Any, batch: Batch) -> None:
            nonlocal passes
            passes += 1
            if passes > MOST_PASSES * len(batches):
                raise TuneforgeError(
                    "too-little-to-observe",
                    f"the directions have not settled after {MOST_PASSES} passes over {len(batches)} batches",
                    path="method.num_batches",
                    fix="set a larger method.num_batches, or method.tau=0.9",
                )
            for module in filter(is_4bit, base.modules()):
                module.training = True
            base(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **kept)

        config, kept = self.peft_config(model), self.logits_kept(model)
        # One rank for all: if PEFT redistributed ranks, a resumed run could not be sure of its shapes.
        config.eva_config = EvaConfig(rho=1.0, tau=self.tau)
        with torch.no_grad():
            found: dict[str, Tensor] = get_eva_state_dict(
                model,
                [dict(batch) for batch in batches],
                config,
                forward_fn=forward,
                gather_distributed_inputs=False,
                show_progress_bar=False,
            )
        setattr(model, DIRECTIONS, found)

    def initialisation(self) -> dict[str, Any]:
        """LoRA's own: A is overwritten afterwards, and what is saved is a plain LoRA."""
        return {"init_lora_weights": True}

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> PeftModel:
        """The model with adapters whose A is what was observed, or with those of `adapter`."""
        tuned = super().apply(model, adapter)
        found: dict[str, Tensor] = vars(model).pop(DIRECTIONS, {})
        for name, directions in found.items():
            with torch.no_grad():
                tuned.get_parameter(f"base_model.model.{name}.lora_A.default.weight").copy_(directions)
        return tuned
