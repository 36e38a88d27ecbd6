"""VB-LoRA: low-rank matrices put together from a bank of vectors that all layers share (arXiv 2405.15179)."""

import math
from dataclasses import dataclass
from typing import Literal

from peft import VBLoRAConfig
from transformers import PreTrainedModel

from tuneforge.errors import TuneforgeError
from tuneforge.methods.base import TargetedMethod
from tuneforge.methods.modules import linear_modules
from tuneforge.schema.types import Factor, Probability, Size

LONGEST = 256
"""Length of a vector in the paper's runs on Llama 2."""


@dataclass(frozen=True, kw_only=True)
class VbLora(TargetedMethod):
    """Trains the bank, and for each piece of each matrix which vectors of the bank it is mixed from."""

    footprint = "vectors"
    splits = False

    r: Size = 4
    """Rank of the updates."""
    num_vectors: Size = 256
    """Vectors in the bank (the paper: 90 to 2048, more for larger models)."""
    vector_length: Literal["auto"] | Size = "auto"
    """Numbers in a vector; must divide the width of every target. auto: the longest that does, up to 256."""
    topk: Size = 2
    """Vectors that a piece is mixed from."""
    vblora_dropout: Probability = 0.0
    """Dropout on the adapter's input."""
    logits_rate: Factor = 10.0
    """Learning rate of the choice of vectors over `optim.lr` (PEFT's example: 1e-2 against the bank's 1e-3)."""

    def peft_config(self, model: PreTrainedModel) -> VBLoRAConfig:
        """VB-LoRA's.

        Raises:
            TuneforgeError: more vectors for a piece than the bank has.
        """
        if self.topk > self.num_vectors:
            message = f"is {self.topk}, and the bank has method.num_vectors={self.num_vectors}"
            raise TuneforgeError(
                "wrong-value", message, path="method.topk", fix=f"set method.topk={self.num_vectors} or less"
            )
        return VBLoRAConfig(
            r=self.r,
            num_vectors=self.num_vectors,
            vector_length=self._length(model),
            topk=self.topk,
            vblora_dropout=self.vblora_dropout,
            **self.shared(model),
        )

    def learning_rate_scale(self, name: str) -> float:
        """The choice of vectors learns faster than the vectors."""
        return self.logits_rate if "vblora_logits" in name else 1.0

    def _length(self, model: PreTrainedModel) -> int:
        if self.vector_length != "auto":
            return self.vector_length
        common = math.gcd(*(n for m in linear_modules(model).values() for n in m.get_parameter("weight").shape))
        return max(n for n in range(1, LONGEST + 1) if common % n == 0)
