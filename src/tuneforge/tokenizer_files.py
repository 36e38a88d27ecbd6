"""Finds what is wrong with a tokenizer's files: transformers reports most of it as another error, or not at all."""

import importlib.util
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerBase

from tuneforge.errors import TuneforgeError
from tuneforge.locate import locate
from tuneforge.schema.model import Model

_JSON = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.json")
_VOCABULARIES = (
    "tokenizer.json",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "*.model",
    "*.tiktoken",
    "*.vocab",
    "*.spm",
)
_AGAIN = "copy or download the tokenizer's files again"


def check_present(model: Model) -> None:
    """Refuse a local folder without a vocabulary: for some architectures transformers would make an empty one.

    Raises:
        TuneforgeError: it has none, and its tokenizer needs one.
    """
    folder = Path(locate(model.path))
    if not folder.is_dir() or any(_vocabularies(folder)) or (folder / "tokenizer_config.json").is_file():
        return
    raise _no_tokenizer(model, sorted(p.name for p in folder.iterdir()))


def check_loaded(model: Model, tokenizer: PreTrainedTokenizerBase, *, generates: bool) -> None:
    """Refuse a tokenizer that loaded and cannot be used.

    Raises:
        TuneforgeError: it has no ordinary token, templates that are no text, or no character offsets.
    """
    if len(tokenizer) <= len(tokenizer.added_tokens_decoder):
        raise explain(model, ValueError("no vocabulary was read")) or _no_tokenizer(model, [])
    template = tokenizer.chat_template
    templates = template.values() if isinstance(template, dict) else [] if template is None else [template]
    if not all(isinstance(one, str) for one in templates):
        raise _broken(model, "tokenizer_config.json", "`chat_template` is neither text nor a list of named texts")
    if not isinstance(tokenizer.model_max_length, int | float):
        shown = repr(tokenizer.model_max_length)[:40]
        raise _broken(model, "tokenizer_config.json", f"`model_max_length` is {shown}, not a number")
    with panics_explained(model):
        tokenizer("a", verbose=False)
    if generates and not tokenizer.is_fast:
        raise TuneforgeError(
            "slow-tokenizer",
            f"{model.path}: {type(tokenizer).__name__} has no fast form, so the tokens of answers cannot be located",
            path="model.path",
            fix="use a model whose tokenizer has a tokenizer.json, or task_recipe=classification, which locates none",
        )


@contextmanager
def panics_explained(model: Model) -> Iterator[None]:
    """Report a panic of the tokenizers library, which is no Exception, as a broken file.

    Raises:
        TuneforgeError: it panics.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # the class cannot be imported: PyO3 makes it when it is needed
            raise
        raise _broken(model, "tokenizer.json", f"tokenizers fails on it: {str(error)[:200]}") from error


def no_tokenizer_class(model: Model, found: object) -> TuneforgeError:
    """The error of a `tokenizer_class` that is the name of something else."""
    return _broken(model, "tokenizer_config.json", f"`tokenizer_class` names {type(found).__name__}, no tokenizer")


def explain(model: Model, error: Exception) -> TuneforgeError | None:
    """The file that made loading fail and what to do about it; None where the hub or remote code is to blame."""
    folder = _folder(model)
    if "trust_remote_code" in str(error) or (folder is None and isinstance(error, OSError | ValueError)):
        return None
    if folder is None:
        return _unusable(model, "its tokenizer", error)
    for name in _JSON:
        wrong = _wrong_json(folder / name)
        if wrong:
            return _broken(model, name, wrong)
    templates = [folder / "chat_template.jinja", *sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    for file in filter(Path.is_file, templates):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError as decoding:
            return _broken(model, str(file.relative_to(folder)), f"it is not UTF-8 ({decoding})")
    found = sorted(_vocabularies(folder))
    if not found:
        return _no_tokenizer(model, sorted(p.name for p in folder.iterdir()))
    if "tokenizer.json" in found:
        return _of_tokenizer_json(model, folder, error)
    return _of_other_vocabulary(model, folder, found[0], error)


def _folder(model: Model) -> Path | None:
    folder = Path(locate(model.path))
    if folder.is_dir():
        return folder
    for name in ("tokenizer_config.json", "tokenizer.json", "tokenizer.model"):
        cached = try_to_load_from_cache(model.path, name, revision=model.revision)
        if isinstance(cached, str):
            return Path(cached).parent
    return None


def _vocabularies(folder: Path) -> Iterable[str]:
    return (file.name for pattern in _VOCABULARIES for file in folder.glob(pattern))


def _wrong_json(file: Path) -> str:
    """Why a file is no JSON object; "" where it is one, or is not there."""
    if not file.is_file():
        return ""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        return "it is not UTF-8 text"
    except json.JSONDecodeError as error:
        return f"it is no JSON, or cut off (line {error.lineno}: {error.msg})"
    except (ValueError, RecursionError) as error:
        return f"it is no JSON that Python reads: {_first(error)}"
    return "" if isinstance(content, dict) else "it is no JSON object"


def _of_tokenizer_json(model: Model, folder: Path, error: Exception) -> TuneforgeError:
    import tokenizers

    try:
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as reason:  # tokenizers raises plain Exception
        return TuneforgeError(
            "broken-tokenizer",
            f"{model.path}: tokenizer.json cannot be read by tokenizers {tokenizers.__version__}: {_first(reason)}",
            path="model.path",
            fix=f"a newer release may have written it: pip install -U transformers tokenizers; else {_AGAIN}",
        )
    return _unusable(model, "tokenizer_config.json", error)


def _of_other_vocabulary(model: Model, folder: Path, name: str, error: Exception) -> TuneforgeError:
    """Of a file that other packages read, which transformers mistakes for one another."""
    needs = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    if name.endswith(".tiktoken") or (name.endswith(".model") and _is_tiktoken(folder / name)):
        needs = {"tiktoken": "tiktoken"}
    elif not name.endswith((".model", ".spm")):
        needs = {}
    missing = [package for package, module in needs.items() if not _installed(module)]
    if not missing:
        return _unusable(model, name, error)
    return TuneforgeError(
        "tokenizer-needs-package",
        f"{model.path}: {name} is read by {' and '.join(needs)}, and {' and '.join(missing)} is not installed",
        path="model.path",
        fix=f"pip install {' '.join(missing)}, or use a copy of the model that has a tokenizer.json",
    )


def _is_tiktoken(file: Path) -> bool:
    """Lines of base64 and a rank; SentencePiece's files are binary."""
    with file.open("rb") as opened:
        parts = opened.readline(4096).split()
    return len(parts) == 2 and parts[1].isdigit() and parts[0].isascii()


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        return False


def _broken(model: Model, name: str, wrong: str) -> TuneforgeError:
    return TuneforgeError("broken-tokenizer", f"{model.path}: {name}: {wrong}", path="model.path", fix=_AGAIN)


def _unusable(model: Model, name: str, error: Exception) -> TuneforgeError:
    return _broken(model, name, f"transformers cannot use it: {type(error).__name__}: {_first(error)}")


def _no_tokenizer(model: Model, found: list[str]) -> TuneforgeError:
    holds = f" (it holds {', '.join(found[:8])})" if found else ""
    return TuneforgeError(
        "no-tokenizer",
        f"{model.path}: the model comes without a tokenizer's vocabulary{holds}",
        path="model.path",
        fix="copy its tokenizer files there too: tokenizer.json and tokenizer_config.json for most models",
    )


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
