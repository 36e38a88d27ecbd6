"""Which weights are tuned."""

from dataclasses import dataclass
from typing import Literal

from tuneforge.schema.types import PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Model:
    """The base model, its tokenizer and its chat template."""

    name: str
    """The option's name, or any name for the record."""
    path: str
    """Folder or hub id; `bundled:NAME` is a model that ships inside the package."""
    revision: str | None = None
    """Branch, tag or commit of a hub id; a full commit hash is required with `trust_remote_code`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Storage type of frozen weights. auto: bfloat16 where the device computes in it, else float32."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """transformers' own names. All of these mask the documents of a packed row (checked at start-up)."""
    trust_remote_code: bool = False
    """Run Python code that comes with the weights. Off; needs a pinned `revision` when on."""
    adapter: str | None = None
    """Folder of a PEFT adapter to continue from."""
    init: Literal["pretrained", "scratch"] = "pretrained"
    """scratch: the architecture and tokenizer of `path` with new random weights."""
    lr_scale: PositiveFloat = 1.0
    """Multiplies the method's learning rate. Methods' rates are for models thousands of units wide; with Adam the best
    rate falls as one over the width (arXiv 2203.03466)."""
    torch_compile: bool = False
    """Compile each decoder layer (torch.compile), which takes minutes: then 14 to 19 % off the step time of an 8B LoRA
    (axolotl's figures for an RTX 3090 and 5090)."""
    chat_template: str = "auto"
    """auto: the tokenizer's own, else `plain`; or `plain`, `chatml`, or the path of a Jinja file; `PACKAGE:FILE` is one
    that lies in a plugin's package."""
