"""Where a model's files are, found without importing anything heavy."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from tuneforge.errors import TuneforgeError

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
        TuneforgeError: the folder is no model.
    """
    found = Path(locate(path))
    if found.is_dir():
        file = found / "config.json"
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(path, "config.json", revision=revision)
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    read: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return read
