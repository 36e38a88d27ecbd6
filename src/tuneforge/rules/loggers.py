"""What loggers may be told by a config."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tuneforge.errors import Problem
from tuneforge.rules.registry import rule
from tuneforge.schema import Config


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
