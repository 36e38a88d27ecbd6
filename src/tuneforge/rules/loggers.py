"""What loggers may be told by a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tuneforge.errors import Problem
from tuneforge.rules.registry import rule
from tuneforge.schema import Config

FOLDERS = ("save_dir", "root_dir", "dirpath", "log_dir", "default_root_dir")
"""Options of Lightning's own callbacks and loggers that name a folder; a relative one is taken from the run folder."""


@rule
def library_folders_stay_in_the_run(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """Lightning's own loggers and callbacks write below the run folder, and delete what has the names they use."""
    for group in ("logger", "callbacks"):
        for name, node in tree[group].items():
            for key, value in node.items() if str(node.get("_target_")).startswith("lightning.") else ():
                parts = Path(value).parts if isinstance(value, str) else ()
                outside = bool({"/", ".."} & set(parts)) or any(p.startswith("~") or "$" in p for p in parts)
                if outside and key != "_target_":
                    message = f"is {value!r}, and leads out of the run folder"
                    fix = "give a relative path without `..` and `$`: it is taken from the run folder"
                    return Problem("outside-the-run", message, f"{group}.{name}.{key}", fix=fix)
    return None


@rule
def passwords_stay_in_the_environment(config: Config, tree: Mapping[str, Any]) -> Problem | None:
    """A config is stored with its run, and with whoever tracks it: an address in it holds no password."""
    for name, node in tree["logger"].items():
        for key, value in node.items():
            if isinstance(value, str) and "://" in value and urlsplit(value).password:
                message = "holds a password, and a config is stored with its run"
                fix = "leave it out: MLFLOW_TRACKING_URI, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
                return Problem("password-in-config", message, f"logger.{name}.{key}", fix=fix)
    return None
