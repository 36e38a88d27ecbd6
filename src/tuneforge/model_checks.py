"""The config against the model's own modules, built without weights."""

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tuneforge import adapters
from tuneforge.console import say, warn
from tuneforge.data.encode import Document
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.method import Method
from tuneforge.model_building import from_config
from tuneforge.models import told
from tuneforge.schema import Config
from tuneforge.schema.model import Model
from tuneforge.settle import Settled
from tuneforge.targets import make
from tuneforge.vocabulary import note_added


def fitted(
    config: Config,
    architecture: PretrainedConfig,
    method: Method,
    tokenizer: PreTrainedTokenizerBase,
    *,
    classifies: bool,
) -> Config:
    """The config with the model's attention worked out, after the method's options were tried on its modules.

    Raises:
        TuneforgeError: an option names a module or layer that the model does not have, or it cannot do what is asked.
    """
    bare = without_weights(config.model, architecture, classifies=classifies)
    if config.data.packing and not classifies and "position_ids" not in inspect.signature(bare.forward).parameters:
        raise TuneforgeError(
            "packing-leaks",
            f"packs documents into rows, and {architecture.model_type} takes no positions that tell them apart",
            path="data.packing",
            fix="set data.packing=false",
        )
    attention = attention_of(bare)
    if config.model.attn_implementation == "auto" and attention != "sdpa":
        say(f"model.attn_implementation=auto: {attention}, which this architecture has")
    if not adapters.starting(config.model):
        note_added(bare, tokenizer, config.model.add_tokens or [])
        method.check(bare)
    if config.model.attn_implementation != "auto":
        return config
    return dataclasses.replace(config, model=dataclasses.replace(config.model, attn_implementation=attention))


def warn_of_rounding(settled: Settled) -> None:
    """Say that the trained weights are 16-bit numbers, where the precision makes them so."""
    if settled.precision in ("bf16-true", "16-true"):
        mixed = settled.precision.replace("true", "mixed")
        message = (
            f"is {settled.precision}: trained weights, adapters too, and optimizer states are kept in 16 bits, and "
            "updates smaller than a weight's rounding, 1 part in 256 of it, are lost"
        )
        warn(
            Problem(
                "rounded-updates", message, "trainer.precision", fix=f"trainer.precision={mixed} keeps them in fp32"
            )
        )


def check_optimizer(node: Mapping[str, Any]) -> None:
    """Build a library's optimizer once for a weight of its own: it knows its bounds, and would tell them after loading.

    Raises:
        TuneforgeError: it refuses its options.
    """
    if str(node["_target_"]).startswith("torch."):
        make("optim", node, torch.optim.Optimizer, [{"params": [torch.nn.Parameter(torch.zeros(1, 1))]}])


def check_rotary_lengths(
    config: Config, architecture: PretrainedConfig, documents: Sequence[Document], settled: Settled
) -> None:
    """Refuse rows in which one document would change the positions of another.

    Under longrope and dynamic rope, transformers picks the rotary frequencies of a whole batch by its longest position:
    a short document beside a long one gets other frequencies than alone. Dynamic ones even stay for the next batch.

    Raises:
        TuneforgeError: documents on both sides of the length at which frequencies change meet in a batch.
    """
    lengths = [len(d.input_ids) for d in documents]
    for kind, limit in rotary_limits(architecture):
        longer = [n for n in lengths if n > limit]
        dynamic = "dynamic" in kind
        meet = config.data.packing or settled.per_device > 1 or dynamic
        if not longer or not meet or (len(longer) == len(lengths) and not dynamic):
            continue
        alone = "" if dynamic else ", or data.packing=false batch.per_device=1, which keeps documents alone"
        raise TuneforgeError(
            "packing-leaks",
            f"{len(longer)} of {len(lengths)} documents are longer than {limit} tokens, where this model's rotary "
            f"embedding ({kind}) changes for all documents of a batch",
            path="data.max_length",
            fix=f"set data.max_length={limit}{alone}",
        )


def rotary_limits(architecture: PretrainedConfig) -> list[tuple[str, int]]:
    """Kind of rotary embedding, and length from which its frequencies depend on the longest position of a batch."""
    text = architecture.get_text_config()
    found: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = [found, *(inner for inner in found.values() if isinstance(inner, dict))]
    limits = []
    for one in kinds:
        kind = str(one.get("rope_type"))
        if kind == "longrope" or "dynamic" in kind:
            limits.append((kind, int(one.get("original_max_position_embeddings") or text.max_position_embeddings)))
    return limits


def without_weights(model: Model, config: PretrainedConfig, *, classifies: bool) -> PreTrainedModel:
    """The model on torch's meta device: all its modules by name, at no cost, before any weight loads.

    Raises:
        TuneforgeError: the architecture does not have the attention implementation that is asked for.
    """
    kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    wanted = model.attention_argument

    def build(attention: str | None) -> PreTrainedModel:
        # A copy: transformers notes its choice in the config.
        with torch.device("meta"):
            return from_config(kind, model, copy.deepcopy(config), attn_implementation=attention)

    try:
        return build(wanted)
    except (ValueError, ImportError) as error:
        if wanted is None:
            raise told(model, error) from error
        first = str(error).strip().splitlines()[0]
    chosen = attention_of(build(None))
    raise TuneforgeError(
        "attention-unavailable",
        f"{wanted} cannot be used for {model.path}: {first}",
        path="model.attn_implementation",
        fix=f"set model.attn_implementation=auto, which is {chosen} for this model",
    )


def attention_of(model: PreTrainedModel) -> Literal["sdpa", "eager"]:
    """The attention implementation that transformers chose for a model, of the two that need nothing installed."""
    return "sdpa" if model.config._attn_implementation == "sdpa" else "eager"
