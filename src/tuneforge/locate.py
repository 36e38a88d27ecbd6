"""Where a model's files are, found without importing anything heavy."""

from importlib import resources
from pathlib import Path
from typing import Any

from tuneforge.errors import TuneforgeError
from tuneforge.safe_files import read_json

BUNDLED = "bundled:"


def locate(path: str) -> str:
    """What transformers is asked to load: a hub id as it is, a folder, or the folder of a bundled model.

    Raises:
        TuneforgeError: the path is a folder that is not there or holds no model.
    """
    if path.startswith(BUNDLED):
        return str(resources.files("tuneforge").joinpath("assets", path.removeprefix(BUNDLED)))
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise TuneforgeError(
                "not-a-model",
                f"{path}: the folder has no config.json, so it is not a model (it holds {found})",
                path="model.path",
                fix="give the folder that `save_pretrained` wrote; an adapter goes into model.adapter, its base here",
            )
        return str(folder)
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise TuneforgeError(
            "no-model-folder",
            f"{path}: there is no such folder",
            path="model.path",
            fix=f"looked at {folder.resolve()}",
        )
    return path


def read_architecture(path: str, revision: str | None = None) -> dict[str, Any] | None:
    """The model's config.json, from its folder or the hub's cache on this machine; None where it is in neither.

    Raises:
        TuneforgeError: the folder is no model, or its config.json cannot be read.
    """
    found = Path(locate(path))
    if found.is_dir():
        file = found / "config.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(path, "config.json", revision=revision)
        except ValueError:  # no id that the hub could have: told by whoever loads it
            return None
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    try:
        read = read_json(file)
    except (ValueError, OSError) as error:
        raise _unreadable(path, str(error)) from error
    if not isinstance(read, dict):
        raise _unreadable(path, "it is no JSON object")
    return read


def _unreadable(path: str, why: str) -> TuneforgeError:
    message = f"{path}: config.json cannot be read: {why}"
    return TuneforgeError("unloadable-model", message, path="model.path", fix="copy or download its files again")
