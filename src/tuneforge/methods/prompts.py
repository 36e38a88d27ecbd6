"""Prompt methods: the base is untouched, and trained vectors stand in front of every row.

They know nothing of the documents of a packed row, so a rule wants `data.packing=false` with them.
"""

from dataclasses import dataclass

from peft import (
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    load_peft_weights,
    set_peft_model_state_dict,
)
from transformers import PreTrainedModel

from tuneforge.methods.base import PeftMethod, with_fp32_head
from tuneforge.schema.types import Size


class Prompted(PeftMethod):
    """What the three share."""

    packs = False
    footprint = "vectors"

    def loaded(self, model: PreTrainedModel, adapter: str, config: PeftConfig) -> PeftModel:
        """The model with saved vectors, trainable: PEFT itself loads them for inference only."""
        config.inference_mode = False
        tuned = with_fp32_head(get_peft_model(model, config))
        set_peft_model_state_dict(tuned, load_peft_weights(adapter, device="cpu"))
        return tuned


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Prompted):
    """Trained embeddings as the first tokens (arXiv 2104.08691)."""

    num_virtual_tokens: Size = 20
    """How many (the paper finds little beyond 20)."""

    @property
    def virtual_tokens(self) -> int:
        """They have hidden states, before those of the row."""
        return self.num_virtual_tokens

    def peft_config(self, model: PreTrainedModel) -> PromptTuningConfig:
        """Prompt tuning's."""
        return PromptTuningConfig(num_virtual_tokens=self.num_virtual_tokens)


@dataclass(frozen=True, kw_only=True)
class PTuning(PromptTuning):
    """Trained embeddings out of a small network, which trains more steadily (arXiv 2103.10385)."""

    encoder_hidden_size: Size = 128
    """Width of the network."""

    def loaded(self, model: PreTrainedModel, adapter: str, config: PeftConfig) -> PeftModel:
        """Never.

        Raises:
            ValueError: what is saved is what the network gave, and not the network.
        """
        raise ValueError("p_tuning saves the embeddings and not the network that makes them, so it cannot go on")

    def peft_config(self, model: PreTrainedModel) -> PromptEncoderConfig:  # type: ignore[override]
        """P-tuning's."""
        return PromptEncoderConfig(
            num_virtual_tokens=self.num_virtual_tokens,
            encoder_hidden_size=self.encoder_hidden_size,
        )


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Prompted):
    """Trained keys and values in front of every layer's own (arXiv 2101.00190)."""

    checkpoints = False
    """Recomputation would append to the cache that carries the prefix."""

    num_virtual_tokens: Size = 20
    """How many (the paper: 10 for tables, 200 for summaries)."""

    @property
    def positions(self) -> int:
        """The prefix lies in the cache, and a row's tokens count on from its end."""
        return self.num_virtual_tokens

    def peft_config(self, model: PreTrainedModel) -> PrefixTuningConfig:
        """Prefix tuning's."""
        return PrefixTuningConfig(num_virtual_tokens=self.num_virtual_tokens)
