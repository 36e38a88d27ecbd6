"""What a folder or hub id of weights may bring: tensors and settings, never code that was not asked for.

Weights are read from safetensors alone: a pickle is a program. An adapter's config names sizes and modules; some of
PEFT's options also name files to unpickle, modules to import, or models to fetch, and those are refused.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneforge.errors import TuneforgeError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib", "*.npy")
"""Files of weights that are read by unpickling, or can hold a pickle."""
ADAPTER_CONFIG = "adapter_config.json"
MAX_JSON = 16 << 20
"""Bytes of a config file; the largest in use hold a few thousand."""

TEXTS = frozenset(
    [
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "target_modules",
        "exclude_modules",
        "modules_to_save",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "target_parameters",
        "bias",
        "init_lora_weights",
        "init_weights",
        "corda_method",
        "feedforward_modules",
        "trainable_token_indices",
        "encoder_reparameterization_type",
        "prompt_tuning_init_text",
        "megatron_core",
        "tokenizer_name_or_path",
        "activation",
        "variant",
        "n_frequency_pattern",
        "lambda_pattern",
        "block_size_pattern",
        "wavelet_family",
        "projection_prng_key",
    ]
)
"""Options of PEFT 0.21's configs that are texts, and that it compares or matches and does nothing else with.

`megatron_core` and `tokenizer_name_or_path` are followed where `megatron_config` or `prompt_tuning_init` ask for it,
which are refused. Numbers, switches and null are harmless under any name.
"""


def refuse_special_files(folder: Path, key: str) -> None:
    """Refuse a folder of weights with a pipe, socket or device in it: reading one waits for ever, or never ends.

    Raises:
        TuneforgeError: naming the file.
    """
    templates = folder / "additional_chat_templates"
    for path in [*folder.iterdir(), *(templates.iterdir() if templates.is_dir() else ())]:
        if not path.exists() or stat.S_IFMT(path.stat().st_mode) in (stat.S_IFREG, stat.S_IFDIR):
            continue
        message = f"{path} is neither a file nor a folder, and nothing else is read from {folder}"
        raise TuneforgeError("special-file", message, path=key, fix=f"rm {path}")


def read_json(file: Path) -> Any:
    """The content of a small JSON file.

    Raises:
        ValueError: it is no JSON, nested too deeply, or larger than any such file.
        OSError: it cannot be read.
    """
    if file.stat().st_size > MAX_JSON:
        raise ValueError(f"{file.name} is larger than {MAX_JSON:,} bytes")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"{file.name} is nested too deeply") from error


def require_safetensors(folder: Path, stem: str, key: str) -> None:
    """Refuse a folder of which only pickled weights could be loaded; `stem` is what the files of weights start with.

    Raises:
        TuneforgeError: naming the file, and what to do.
    """
    if any(folder.glob(f"{stem}*.safetensors")):
        return
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        raise TuneforgeError(
            "pickled-weights",
            f"{folder} has its weights as {pickled[0]}: a pickle, which can run any code when it is read",
            path=key,
            fix="use a folder with *.safetensors; who trusts this file can convert it once, with from_pretrained(...) "
            "and save_pretrained(...) of the library that wrote it",
        )


def refuse_embedded_adapter(folder: Path, key: str) -> None:
    """Refuse an adapter in the folder of a model: transformers would load it on the model, without a word.

    Raises:
        TuneforgeError: there is one.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        raise TuneforgeError(
            "adapter-in-model",
            f"{folder} holds an adapter ({ADAPTER_CONFIG}), and {key} names a base model",
            path=key,
            fix=f"give the base in {key} and the adapter in model.adapter={folder}; or remove {ADAPTER_CONFIG} there",
        )


def read_adapter_options(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a folder.

    Raises:
        ValueError: it is no JSON object, has no kind, or is of a size that no adapter's has.
        OSError: it cannot be read.
    """
    held = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(held, dict) or not isinstance(held.get("peft_type"), str):
        raise ValueError(f"{ADAPTER_CONFIG} is no object with a peft_type")
    return held


def check_adapter_options(options: Mapping[str, Any], adapter: str, key: str) -> None:
    """Refuse an adapter whose config names code, files or models that PEFT would follow.

    Raises:
        TuneforgeError: naming the option.
    """
    named = next(_followed(options), None)
    if named is None and options.get("megatron_config") is not None:
        named = "megatron_config"
    if named is None and str(options.get("prompt_tuning_init")).rpartition(".")[2] == "TEXT":
        # A saved prompt does not need the text that it started from; PEFT would load a tokenizer by its name.
        named = "prompt_tuning_init"
    if named is not None:
        raise TuneforgeError(
            "adapter-names-code",
            f"{ADAPTER_CONFIG} of {adapter} sets {named}, by which PEFT can load other files, models or modules",
            path=key,
            fix=f"remove {named} from that file: what was trained is in adapter_model.safetensors",
        )


def _followed(options: Mapping[str, Any], inside: str = "") -> Iterator[str]:
    """Options, dotted, that hold a text and are none of `TEXTS`."""
    for name, value in options.items():
        if name in TEXTS or (not inside and name == "prompt_tuning_init"):
            continue
        if not inside and name == "auto_mapping" and _is_of_transformers(value):
            continue
        where = f"{inside}.{name}" if inside else str(name)
        if isinstance(value, Mapping):
            yield from _followed(value, where)
        elif (isinstance(value, str) and value) or (
            isinstance(value, list | tuple | set) and any(isinstance(v, str | Mapping) for v in value)
        ):
            yield where


def _is_of_transformers(mapping: Any) -> bool:
    """Whether it names a class of transformers: PEFT writes that for every adapter made without a task type."""
    library = mapping.get("parent_library") if isinstance(mapping, Mapping) else mapping
    return library is None or str(library).partition(".")[0] == "transformers"


def code_digest(folder: Path) -> str:
    """40 digits of a hash over the Python files of a folder: what pins the code of a model that is no commit.

    Links are followed, as transformers follows them: `auto_map` may name a file in a folder that is one.
    """
    total = hashlib.sha256()
    for file in sorted(_python_files(folder)):
        total.update(file.relative_to(folder).as_posix().encode() + b"\0")
        total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:40]


def _python_files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for at, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(at))
        folders[:] = [name for name in folders if os.path.realpath(Path(at) / name) not in seen]
        yield from (path for path in (Path(at) / name for name in names if name.endswith(".py")) if path.is_file())


def foreign_code(folder: Path) -> str:
    """A class that a config of the folder would load from another repository (`auto_map`: repo--file.Class), or "".

    A file that cannot be looked at names none: at the revision that pins this folder, no other repository has code.
    """
    for file in sorted(path for path in folder.glob("*.json") if path.is_file()):
        try:
            held = read_json(file)
        except (ValueError, OSError):
            continue
        classes = held.get("auto_map") if isinstance(held, Mapping) else None
        found = [c for c in _texts(classes) if "--" in c]
        if found:
            return f"{file.name}: {found[0]}"
    return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
