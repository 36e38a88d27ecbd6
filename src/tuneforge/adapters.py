"""The adapters a run starts from: one to continue, several combined into one, and frozen ones beside it."""

import dataclasses
import json
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, PeftType
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tuneforge import bounded
from tuneforge.bounded import matching
from tuneforge.compat import weights_are_data
from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.method import Method
from tuneforge.safe_files import check_adapter_options, read_adapter_options, refuse_special_files, require_safetensors
from tuneforge.schema.model import Model

EQUAL_RANKS = ("linear", "ties", "dare_linear", "dare_ties")
"""Combinations that add matrices of one shape."""


def starting(model: Model) -> list[str]:
    """The adapters that the trained one starts from."""
    return [model.adapter] if isinstance(model.adapter, str) else list(model.adapter or ())


def check(model: Model, options: Mapping[str, Any], method: Method, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse, before weights load, adapters that cannot be used; say where they differ from the method's options.

    Args:
        model: the config's model.
        options: of the method, as the config has them.
        method: the built method.
        tokenizer: of this run, with the tokens of `model.add_tokens`.

    Raises:
        TuneforgeError: one cannot be read, they do not go together, or one knows other tokens than this run.
    """
    starts, frozen = starting(model), list(model.frozen_adapters or ())
    configs = {path: read_config(path, "model.adapter" if path in starts else "model.frozen_adapters")
               for path in (*starts, *frozen)}  # fmt: skip
    for path, config in configs.items():
        _check_vocabulary(path, str(config.base_model_name_or_path), tokenizer)
    if len(starts) > 1:
        _check_combination(model, [configs[path] for path in starts])
    elif starts:
        _say_differences(starts[0], configs[starts[0]], options)
    if frozen and method.rewrites_base:
        raise TuneforgeError(
            "frozen-on-rewritten-base",
            "act on the base they were trained on, and this method starts by rewriting it",
            path="model.frozen_adapters",
            fix="use method=lora",
        )


def build(method: Method, base: PreTrainedModel, model: Model) -> Any:
    """The base under the method, with the adapters that the config names."""
    starts = starting(model)
    several = len(starts) > 1
    tuned = _combined(base, starts, model) if several else method.apply(base, starts[0] if starts else None)
    if model.frozen_adapters:
        _freeze_beside(tuned, model.frozen_adapters)
    return tuned


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model under PEFT's wrapper, or the model itself."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(base, PreTrainedModel)
    return base


@contextmanager
def switched_off(model: PeftModel) -> Iterator[None]:
    """Within, the base alone answers.

    PEFT makes every active adapter trainable when it is switched on again, frozen ones too.
    """
    trainable = {p: p.requires_grad for p in model.parameters()}
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, was in trainable.items():
            parameter.requires_grad_(was)


# ---- checks


def read_config(path: str, key: str) -> PeftConfig:
    """What PEFT says of the adapter in a folder, or on the hub.

    Raises:
        TuneforgeError: there is none, or one of a kind that is not known.
    """
    folder = Path(path)
    try:
        if folder.is_dir():  # before PEFT makes anything of it
            refuse_special_files(folder, key)
            check_adapter_options(read_adapter_options(folder), path, key)
            require_safetensors(folder, "adapter_model", key)
        config: PeftConfig = PeftConfig.from_pretrained(path)
    except KeyError as error:
        raise TuneforgeError(
            "adapter-does-not-fit",
            f"{path} holds an adapter of the kind {error}, which this method does not know",
            path=key,
            fix="use the method that made it",
        ) from error
    except (ValueError, OSError, TypeError, AttributeError, RecursionError) as error:
        raise TuneforgeError(
            "no-adapter",
            f"{path} holds no adapter that PEFT can read: {str(error).strip().splitlines()[0]}",
            path=key,
            fix="give the adapter/ folder of a run, or a hub id: it has an adapter_config.json",
        ) from error
    if not folder.is_dir():
        usual = {f.name: f.default for f in dataclasses.fields(config)}
        check_adapter_options({k: v for k, v in config.to_dict().items() if v != usual.get(k)}, path, key)
    _check_weights(Path(path), key)
    return config


def _check_weights(folder: Path, key: str) -> None:
    """A local adapter's safetensors file must be as long as its header says; PEFT finds that out after the base."""
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        return
    try:
        with safe_open(file, "pt") as opened:
            opened.keys()
    except SafetensorError as error:
        raise TuneforgeError(
            "damaged-file",
            f"{file} cannot be read, or is cut off: {str(error).strip().splitlines()[0]}",
            path=key,
            fix="put it back from a copy, or take the adapter of another run",
        ) from error


def check_patterns(config: PeftConfig, model: nn.Module, key: str) -> None:
    """Try every pattern of an adapter's config on the names of the model, under a bound: PEFT has none.

    Raises:
        TuneforgeError: one takes too long, or is no pattern.
    """
    names = [name for name, _ in model.named_modules()]
    started = time.process_time()
    for option, written in _patterns(config.to_dict()):
        path = f"{key}.{option}" if key == "method" else key
        matching(written, names, path)
        if time.process_time() - started > bounded.SECONDS:  # each in time, and all of them not
            message = f"the patterns of {option} and before take more than {bounded.SECONDS:g} seconds of the processor"
            raise TuneforgeError("slow-pattern", message, path=path, fix="name the modules, without patterns")


def _patterns(options: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The regular expressions that PEFT 0.21 makes of an adapter's options: (option, expression)."""
    for option in ("target_modules", "exclude_modules", "feedforward_modules"):
        if isinstance(options.get(option), str):
            yield option, options[option]
    for option, given in options.items():
        if option.endswith("_pattern") and isinstance(given, Mapping):
            yield from ((option, rf"(.*\.)?({name})$") for name in given)
    for name in options.get("modules_to_save") or ():
        yield "modules_to_save", rf"(^|.*\.){name}($|\..*)"
    layers = options.get("layers_pattern") or ()
    for name in [layers] if isinstance(layers, str) else layers:
        yield "layers_pattern", rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\..*"


def _check_vocabulary(path: str, base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """An adapter saved with its tokenizer must know this run's tokens by the same ids."""
    if not (Path(path) / "tokenizer_config.json").is_file():
        return
    with weights_are_data():
        theirs = AutoTokenizer.from_pretrained(path, trust_remote_code=False).get_vocab()
    ours = tokenizer.get_vocab()
    missing = sorted(theirs.keys() - ours.keys(), key=theirs.__getitem__)
    moved = [t for t, i in theirs.items() if t in ours and ours[t] != i]
    if not missing and not moved:
        return
    if moved or len(missing) > len(theirs) // 10:
        token = (moved or missing)[0]
        message = (
            f"was trained with another tokenizer: {token!r} is token {theirs[token]} there, {ours.get(token)} here"
        )
        fix = f"it was made for {base}: give that in model.path"
    else:
        message = f"knows {len(missing)} tokens that this run does not: {', '.join(map(repr, missing[:5]))}"
        fix = f"add them: {shlex.quote(f'model.add_tokens={json.dumps(missing)}')}"
    raise TuneforgeError("vocabulary-mismatch", f"{path} {message}", path="model.adapter", fix=fix)


def _check_combination(model: Model, configs: list[PeftConfig]) -> None:
    kinds = sorted({PeftType(config.peft_type).value for config in configs if config.peft_type})
    settings = model.combination
    if any(not isinstance(config, LoraConfig) for config in configs):
        raise TuneforgeError(
            "cannot-combine",
            f"are {' and '.join(kinds)}, and PEFT combines LoRA adapters alone",
            path="model.adapter",
            fix="continue one of them, and give the others in model.frozen_adapters",
        )
    if settings.weights is not None and len(settings.weights) != len(configs):
        raise TuneforgeError(
            "cannot-combine",
            f"has {len(settings.weights)} weights for {len(configs)} adapters",
            path="model.combination.weights",
            fix="give one weight for each path of model.adapter, or drop the key",
        )
    ranks = [config.r for config in configs if isinstance(config, LoraConfig)]
    if settings.type in EQUAL_RANKS and len(set(ranks)) > 1:
        raise TuneforgeError(
            "cannot-combine",
            f"{settings.type} adds matrices of one shape, and the adapters have ranks {', '.join(map(str, ranks))}",
            path="model.combination.type",
            fix="use model.combination.type=cat or svd",
        )


def _say_differences(path: str, config: PeftConfig, options: Mapping[str, Any]) -> None:
    """An adapter that is continued keeps the sizes it has, whatever the method's options say."""
    saved = config.to_dict()
    different = [
        f"{key} is {saved[key]} there and {value} here"
        for key, value in options.items()
        if isinstance(value, int | float) and isinstance(saved.get(key), int | float) and saved[key] != value
    ]
    if different:
        warn(Problem("no-effect", f"{path} keeps its own options: {', '.join(different)}", "model.adapter"))


# ---- building


@contextmanager
def fitting(adapter: str, key: str) -> Iterator[None]:
    """PEFT's errors while the adapter of a folder is put on a model, with the bases and shapes named.

    Raises:
        TuneforgeError: what was raised inside.
    """
    try:
        with weights_are_data():
            yield
    except (ValueError, RuntimeError, OSError) as error:
        lines = [line.strip() for line in str(error).strip().splitlines()]
        shapes = next((line for line in lines if "shape" in line), lines[0])
        made_for = PeftConfig.from_pretrained(adapter).base_model_name_or_path
        raise TuneforgeError(
            "adapter-does-not-fit",
            f"{adapter} cannot be loaded on this model: {shapes}; it was made for {made_for}",
            path=key,
            fix="give the model that the adapter was made for",
        ) from error


def _combined(base: PreTrainedModel, paths: list[str], model: Model) -> PeftModel:
    """A new adapter made of those of `paths`, which are gone afterwards."""
    settings = model.combination
    names = [f"part_{i}" for i in range(len(paths))]
    check_patterns(read_config(paths[0], "model.adapter"), base, "model.adapter")
    with fitting(paths[0], "model.adapter"):
        tuned = PeftModel.from_pretrained(base, paths[0], adapter_name=names[0])
    _load(tuned, paths[1:], names[1:], "model.adapter")
    tuned.add_weighted_adapter(
        names,
        settings.weights or [1 / len(paths)] * len(paths),
        "default",
        combination_type=settings.type,
        density=settings.density if settings.type in ("ties", "dare_linear", "dare_ties") else None,
    )
    tuned.set_adapter("default")
    for name in names:
        tuned.delete_adapter(name)
    return tuned


def _freeze_beside(tuned: PeftModel, paths: list[str]) -> None:
    """Let the adapters of `paths` act together with the trained one."""
    trainable = {p for p in tuned.parameters() if p.requires_grad}
    names = [f"frozen_{i}" for i in range(len(paths))]
    _load(tuned, paths, names, "model.frozen_adapters")
    tuner: Any = tuned.base_model  # PeftModel's own method takes one name
    tuner.set_adapter(["default", *names])
    for parameter in tuned.parameters():
        parameter.requires_grad_(parameter in trainable)


def _load(tuned: PeftModel, paths: list[str], names: list[str], key: str) -> None:
    for path, name in zip(paths, names, strict=True):
        check_patterns(read_config(path, key), base_model(tuned), key)
        with fitting(path, key):
            tuned.load_adapter(path, adapter_name=name)
