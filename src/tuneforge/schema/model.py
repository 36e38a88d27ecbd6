"""Which weights are tuned."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tuneforge.schema.types import Factor, LocalPath, Range


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How several adapters become the one that a run starts from; PEFT's names."""

    type: Literal["cat", "svd", "linear", "ties", "dare_linear", "dare_ties"] = "cat"
    """cat: the exact weighted sum of the updates, at the sum of the ranks; svd: its best approximation at the largest
    rank. The others add A and B matrices apart and want equal ranks: linear as they are, ties without weights that
    disagree in sign (arXiv 2306.01708), dare after dropping weights by chance (arXiv 2311.03099)."""
    weights: list[Annotated[float, Range(ge=-100, le=100)]] | None = None
    """Weight of each adapter; null: the same for all, adding up to 1."""
    density: Annotated[float, Range(gt=0, lt=1)] = 0.5
    """Share of the weights that ties and dare keep."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model, its tokenizer and its chat template."""

    name: str
    """The option's name, or any name for the record."""
    path: LocalPath
    """Folder or hub id; `bundled:NAME` is a model that ships inside the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a full commit hash is required with `trust_remote_code`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Storage type of frozen weights. auto: bfloat16 where the device computes in it, else float32."""
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2", "flex_attention"] = "auto"
    """transformers' own names. auto: sdpa where the architecture has it, else eager. All of these mask the documents
    of a packed row (checked at start-up)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the weights. Off; needs a pinned `revision` when on."""
    adapter: LocalPath | list[LocalPath] | None = None
    """Folder or hub id of a PEFT adapter to continue from; several are combined into one first."""
    combination: Combination = field(default_factory=Combination)
    """How several adapters are combined."""
    frozen_adapters: list[LocalPath] | None = None
    """Adapters that act together with the trained one and are not changed; saved beside it."""
    add_tokens: list[str] | None = None
    """Tokens to add to the vocabulary; their embeddings are trained and saved, the other tokens' stay."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """scratch: the architecture and tokenizer of `path` with new random weights."""
    lr_scale: Factor = 1.0
    """Multiplies the method's learning rate. Methods' rates are for models thousands of units wide; with Adam the best
    rate falls as one over the width (arXiv 2203.03466)."""
    torch_compile: bool = False
    """Compile each decoder layer (torch.compile), which takes minutes: then 14 to 19 % off the step time of an 8B LoRA
    (axolotl's figures for an RTX 3090 and 5090)."""
    chat_template: LocalPath = "auto"
    """auto: the tokenizer's own, else `plain`; or `plain`, `chatml`, or the path of a Jinja file; `PACKAGE:FILE` is one
    that lies in a plugin's package."""

    @property
    def attention_argument(self) -> str | None:
        """What transformers' `attn_implementation` takes. None: it chooses."""
        return None if self.attn_implementation == "auto" else self.attn_implementation
