"""Loading weights and tokenizers; every way this fails for a user becomes an error that names the config path."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from tuneforge import tokenizer_files
from tuneforge.adapters import starting
from tuneforge.compat import weights_are_data
from tuneforge.console import console
from tuneforge.data.labels import Labels
from tuneforge.errors import TuneforgeError
from tuneforge.heads import head_modules, in_head
from tuneforge.locate import locate, read_architecture
from tuneforge.model_building import from_config, odd_values_told
from tuneforge.safe_files import refuse_embedded_adapter, refuse_special_files, require_safetensors
from tuneforge.schema.model import Model


def check_weights(model: Model) -> None:
    """Refuse a local folder without weights, or with others than tensors, before anything else is loaded.

    Raises:
        TuneforgeError: with what is there instead.
    """
    folder = Path(locate(model.path))
    if not folder.is_dir():
        return
    refuse_special_files(folder, "model.path")
    if model.init == "scratch":
        return
    refuse_embedded_adapter(folder, "model.path")
    require_safetensors(folder, "", "model.path")
    if not any(folder.glob("*.safetensors")):
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8])
        raise TuneforgeError(
            "no-weights",
            f"{model.path}: the folder has a config but no weights (it holds {found})",
            path="model.path",
            fix="copy the *.safetensors files there too, or start from random ones: model.init=scratch method=full",
        )


@contextmanager
def _explained(model: Model) -> Iterator[None]:
    """Library errors while loading, told in the words of the config."""
    try:
        with weights_are_data():
            yield
    except (HfHubHTTPError, SafetensorError, ImportError, OSError, ValueError) as error:
        raise told(model, error) from error


def told(model: Model, error: Exception) -> TuneforgeError:
    """transformers wraps the hub's errors in OSError and ValueError; their cause, or only their text, tells which."""
    causes, text = (error, error.__cause__, error.__context__), str(error)
    first = text.strip().splitlines()[0][:300]
    if any(isinstance(c, GatedRepoError) for c in causes) or "gated repo" in text:
        return TuneforgeError(
            "gated-model",
            f"{model.path} is gated on the hub and this machine has no access to it",
            path="model.path",
            fix="accept its terms on the model's page, then export HF_TOKEN=<your token>",
        )
    if any(isinstance(c, RepositoryNotFoundError) for c in causes):
        return TuneforgeError(
            "no-such-model",
            f"{model.path} is not on the hub (or is private)",
            path="model.path",
            fix="check the spelling; a private one needs HF_TOKEN; a local folder is given as ./folder",
        )
    if "trust_remote_code" in text:
        return TuneforgeError(
            "needs-remote-code",
            f"{model.path} needs Python code of its own to load",
            path="model.trust_remote_code",
            fix="read that code, then set model.trust_remote_code=true model.revision=<the commit you read>",
        )
    if "safetensors" in text and not isinstance(error, SafetensorError) and "file named" in text:
        return TuneforgeError(
            "pickled-weights",
            f"{model.path} has no weights as safetensors: {first}",
            path="model.path",
            fix="use a model with *.safetensors; other files of weights are pickles, which can run any code when read",
        )
    if "attention implementation" in text or isinstance(error, ImportError):
        return TuneforgeError(
            "attention-unavailable",
            f"{model.attn_implementation} cannot be used for {model.path}: {first}",
            path="model.attn_implementation",
            fix="install what it needs, or set model.attn_implementation=auto",
        )
    if Path(locate(model.path)).is_dir():
        fix = "copy or download its files again" if isinstance(error, SafetensorError) else ""
        return TuneforgeError("unloadable-model", f"{model.path} cannot be loaded: {first}", path="model.path", fix=fix)
    return TuneforgeError(
        "hub-unreachable",
        f"{model.path} is no local folder, and the hub could not be asked for it: {first}",
        path="model.path",
        fix="check the spelling and the network; offline, give the folder of a model saved here before (./folder)",
    )


def _code(model: Model) -> dict[str, Any]:
    """Whose code may run while a model is loaded: none, or that of its own repository at the commit that was named."""
    # Where a config names a class of another repository, that repository has no such commit, and loading fails.
    pinned = model.revision if model.trust_remote_code else None
    trusted: dict[str, Any] = {"trust_remote_code": model.trust_remote_code, "code_revision": pinned}
    return trusted if Path(locate(model.path)).is_dir() else trusted | {"revision": model.revision}


def load_config(model: Model) -> PretrainedConfig:
    """The model's architecture.

    Raises:
        TuneforgeError: it cannot be read, or names code of another repository.
    """
    with _explained(model), odd_values_told():
        read_architecture(model.path, model.revision)  # told by its own words where it is no JSON
        config: PretrainedConfig = AutoConfig.from_pretrained(locate(model.path), **_code(model))
    kernel = str(config._attn_implementation or "")
    if "/" in kernel:
        raise TuneforgeError(
            "remote-code-elsewhere",
            f"config.json of {model.path} names {kernel} for its attention, which is code on the hub",
            path="model.path",
            fix="remove _attn_implementation from that file, or use another model",
        )
    return config


def labels_in_order_of(labels: Labels, model: Model, config: PretrainedConfig) -> Labels:
    """The labels in the order in which the base, or the adapter to go on from, was trained on them.

    A base with other labels gets a new head. An adapter's head is what goes on, so its labels must be these.

    Raises:
        TuneforgeError: `model.adapter` was trained on other labels.
    """
    adapter = next(iter(starting(model)), None)
    config_file = Path(adapter or "") / "config.json"
    if adapter is not None and config_file.is_file():
        with weights_are_data():
            config = AutoConfig.from_pretrained(config_file, trust_remote_code=False)
    names = tuple(str(name) for _, name in sorted((config.id2label or {}).items()))
    if set(names) == set(labels.names):
        return dataclasses.replace(labels, names=names)
    if adapter is not None:
        raise TuneforgeError(
            "other-labels",
            f"{adapter} was trained on the labels {', '.join(names)}, and these rows have {', '.join(labels.names)}",
            path="model.adapter",
            fix="give data.labels=[...] of the adapter where the rows have fewer, or start a new adapter",
        )
    return labels


def check_architecture(model: Model, config: PretrainedConfig, objective: str, *, classifies: bool) -> None:
    """Refuse a model that is not made for the objective; transformers would load some in a mode they never saw.

    Raises:
        TuneforgeError: an encoder for next tokens, or a model without a classification head.
    """
    kind = config.model_type
    if config.is_encoder_decoder:
        message, fix = f"{model.path} ({kind}) is an encoder with a decoder, and no objective here is for one", ""
        raise TuneforgeError(
            "wrong-architecture", message, path="model.path", fix=fix or "give a decoder or an encoder"
        )
    if classifies and kind not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise TuneforgeError(
            "wrong-architecture",
            f"{model.path} ({kind}) has no classification head in transformers, and "
            f"task_recipe.objective={objective} trains one",
            path="model.path",
            fix="give a model of another architecture, such as llama, qwen3, gpt2, bert or modernbert",
        )
    if not classifies and kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise TuneforgeError(
            "wrong-architecture",
            f"{model.path} ({kind}) is an encoder, which sees the tokens after the one it predicts, and "
            f"task_recipe.objective={objective} learns next tokens",
            path="model.path",
            fix="use task_recipe=classification, or give a decoder (llama, qwen3, gpt2, ...)",
        )


def load_tokenizer(model: Model, *, generates: bool = True) -> PreTrainedTokenizerBase:
    """The model's tokenizer, padding on the right, with a pad token that is only ever used as filler.

    Raises:
        TuneforgeError: its files are missing or broken; it lacks the token that ends an answer, or character offsets,
            of a model that `generates`; or any token that could pad.
    """
    tokenizer_files.check_present(model)
    with _explained(model):
        tokenizer = _tokenizer(model)
    tokenizer_files.check_loaded(model, tokenizer, generates=generates)
    if tokenizer.eos_token_id is None and generates:
        raise TuneforgeError(
            "no-eos",
            f"the tokenizer of {model.path} has no EOS token, so a tuned model could not end an answer",
            path="model.path",
            fix="set `eos_token` in its tokenizer_config.json",
        )
    if tokenizer.pad_token_id is None:
        # Labels are built from spans, never from ids, so a pad that equals EOS hides no real EOS.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise TuneforgeError(
            "no-pad",
            f"the tokenizer of {model.path} has neither a pad token nor an EOS token to pad with",
            path="model.path",
            fix="set `pad_token` in its tokenizer_config.json",
        )
    tokenizer.padding_side = "right"
    return tokenizer


def _tokenizer(model: Model) -> PreTrainedTokenizerBase:
    try:
        with tokenizer_files.panics_explained(model):
            found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(locate(model.path), **_code(model))
    except TuneforgeError:
        raise
    except Exception as error:  # of any kind: broken files raise what the parser that met them raises
        explained = tokenizer_files.explain(model, error)
        if explained is None:
            raise
        raise explained from error
    if not isinstance(found, PreTrainedTokenizerBase):
        raise tokenizer_files.no_tokenizer_class(model, found)
    return found


def check_vocabulary(model: Model, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer with ids that the embedding has no rows for; rows to spare are common.

    Raises:
        TuneforgeError: it has some.
    """
    rows: int | None = getattr(config.get_text_config(), "vocab_size", None)
    if rows is None:
        return
    beyond = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i >= rows)
    if beyond:
        raise TuneforgeError(
            "tokenizer-too-large",
            f"{model.path}: the tokenizer has ids up to {beyond[-1][0]}, and the model's embedding has {rows} rows "
            f"(ids 0 to {rows - 1}); without one: {', '.join(repr(token) for _, token in beyond[:5])}"
            + (f" and {len(beyond) - 5} more" if len(beyond) > 5 else ""),
            path="model.path",
            fix="use the tokenizer files that the model was trained with; tokens of your own go into model.add_tokens",
        )


def load_model(
    model: Model, config: PretrainedConfig, dtype: torch.dtype, quantization_config: Any = None
) -> PreTrainedModel:
    """The model in `dtype`, with pretrained or new random weights, left in eval mode as transformers does."""
    loaded, _ = _load(AutoModelForCausalLM, model, config, dtype, quantization_config)
    return loaded


def load_classifier(
    model: Model, config: PretrainedConfig, dtype: torch.dtype, quantization_config: Any = None
) -> PreTrainedModel:
    """The model with a classification head as `classifier_config` describes it; new where it has none of that size.

    Raises:
        TuneforgeError: the checkpoint's weights are not those of this architecture.
    """
    with torch.device("meta"):
        heads = head_modules(from_config(AutoModelForSequenceClassification, model, config))
    if quantization_config is not None:
        # What is drawn anew is trained, and cannot be quantised.
        quantization_config.llm_int8_skip_modules = heads
    loaded, missing = _load(AutoModelForSequenceClassification, model, config, dtype, quantization_config)
    lost = [name for name in missing if not in_head(name, heads)]
    if lost:
        raise TuneforgeError(
            "unloadable-model",
            f"{model.path}: {len(lost)} weights of the architecture are not in the checkpoint, {lost[0]} among them",
            path="model.path",
            fix="copy or download its files again",
        )
    return loaded


def classifier_config(config: PretrainedConfig, labels: Labels, pad_token_id: int) -> PretrainedConfig:
    """The model's config for a classification head: names of the classes, loss, padding."""
    config = copy.deepcopy(config)
    config.id2label = dict(enumerate(labels.names))
    config.label2id = {name: i for i, name in config.id2label.items()}
    config.problem_type = "multi_label_classification" if labels.multi else "single_label_classification"
    # Decoders find a text's last token by it.
    config.get_text_config().pad_token_id = config.pad_token_id = pad_token_id
    config.get_text_config().use_cache = config.use_cache = False
    return config


def _load(
    kind: Any,
    model: Model,
    config: PretrainedConfig,
    dtype: torch.dtype,
    quantization_config: Any,
) -> tuple[PreTrainedModel, list[str]]:
    """The model of an auto class, and the names of the weights that its checkpoint does not have."""
    if not console.is_terminal:
        transformers_logging.disable_progress_bar()
    if model.init == "scratch":
        return from_config(kind, model, config, dtype=dtype, attn_implementation=model.attention_argument), []
    extra = {} if quantization_config is None else {"quantization_config": quantization_config}
    if kind is AutoModelForSequenceClassification:
        # Its config is not the checkpoint's own, and a head for other classes is drawn anew.
        extra |= {"config": config, "ignore_mismatched_sizes": True}
    with _explained(model), odd_values_told():
        loaded, found = kind.from_pretrained(
            locate(model.path),
            **_code(model),
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=model.attention_argument,
            output_loading_info=True,
            **extra,
        )
    if quantization_config is not None:
        check_quantised(loaded)
    return loaded, sorted(found["missing_keys"])


LEAST_QUANTISED = 0.9
"""Share of the weights inside the layers that a quantised model must really have quantised."""


def check_quantised(model: PreTrainedModel) -> None:
    """Refuse a "quantised" model most of which is not: fused experts of a mixture pass bitsandbytes by, without a word.

    Raises:
        TuneforgeError: less than `LEAST_QUANTISED` of the matrices are quantised.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    outside = {id(m) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    heads = head_modules(model)
    quantised, plain = 0, dict[str, int]()
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit | Linear8bitLt):
            quantised += module.in_features * module.out_features
        elif id(module) not in outside and not isinstance(module, torch.nn.Embedding) and not in_head(name, heads):
            own = module.named_parameters(prefix=name, recurse=False)
            plain |= {n: p.numel() for n, p in own if p.ndim > 1}
    whole = quantised + sum(plain.values())
    if whole and quantised < LEAST_QUANTISED * whole:
        largest = max(plain, key=plain.__getitem__)
        raise TuneforgeError(
            "not-quantised",
            f"only {quantised / whole:.0%} of the layers' weights can be quantised: {largest} and its like stay whole, "
            "and the run would need the memory of an unquantised one",
            path="method",
            fix="use method=lora on a device that holds the model, or a model whose experts are linear layers",
        )


def max_positions(config: PretrainedConfig) -> int | None:
    """Longest sequence the model has positions for; None where the architecture sets no limit."""
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        value = getattr(config.get_text_config(), name, None)
        if isinstance(value, int):
            return value
    return None
