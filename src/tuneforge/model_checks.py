"""The config against the model's own modules, built without weights."""

import dataclasses
import inspect
from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tuneforge import adapters
from tuneforge.console import say, warn
from tuneforge.data.encode import Document
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.method import Method
from tuneforge.models import attention_of, rotary_limits, without_weights
from tuneforge.schema import Config
from tuneforge.settle import Settled
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
