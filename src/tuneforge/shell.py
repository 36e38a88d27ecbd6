"""What is typed and what is printed to be typed: values in Hydra's grammar, commands in the shell's, paths with `~`."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORDS = ("null", "none", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", ".", "..", ".nan", ".inf")


def is_plain(text: str) -> bool:
    """Whether a text means itself, unquoted, to Hydra's grammar and to YAML."""
    if not re.fullmatch(r"[A-Za-z_./][\w./-]*", text, re.ASCII) or text.lower() in _WORDS:
        return False
    try:
        float(text)
    except ValueError:
        return True
    return False


def hydra(value: Any) -> str:
    """The value in Hydra's override grammar."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(hydra, value))}]"
    if isinstance(value, str):
        return value if is_plain(value) else _quoted(value)
    return repr(value)


def _quoted(text: str) -> str:
    """In double quotes: quotes and the backslashes before them escaped, and `${`, which would be an interpolation."""
    literal = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", text)
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: found[1] * 2 + (r"\"" if found[2] else ""), literal)
    return f'"{escaped}"'


def setting(key: str, value: Any) -> str:
    """The override that sets a key, unquoted for the shell."""
    return f"{key}={hydra(str(value) if isinstance(value, Path) else value)}"


def typed(key: str, value: Any) -> str:
    """The override that sets a key, as it is typed in a shell."""
    return shlex.quote(setting(key, value))


def command(*arguments: str, config_dirs: Sequence[Path | str] = (), base: Path | None = None) -> str:
    """The command with these arguments (a verb, overrides), as it is typed in a shell.

    Args:
        arguments: words as the program gets them.
        config_dirs: folders of --config-dir.
        base: the run that the config starts from.
    """
    dirs = [part for folder in config_dirs for part in ("--config-dir", str(folder))]
    start = ["--from", str(base)] if base else []
    return shlex.join(["python", "-m", "tuneforge", *dirs, *start, *arguments])


def local_path(text: str) -> Path:
    """A path as it was typed, `~` being the home folder; the one place where a command's paths become paths."""
    return Path(os.path.expanduser(text))


def home_quoted(override: str) -> str:
    """`key=~/x` with the value in quotes, which Hydra's grammar wants around `~` and a shell takes away."""
    key, _, value = override.partition("=")
    return f"{key}={_quoted(value)}" if re.match(r"~[\w.-]*(/|\Z)", value) else override


def key_of(override: str) -> str:
    """The key that an override is about."""
    return override.partition("=")[0].lstrip("+~").partition("@")[0]


def again(overrides: Sequence[str]) -> list[str]:
    """What was typed, to do the same once more in a new folder: without the folder, and without what to resume."""
    return [o for o in overrides if key_of(o) not in ("resume", "hydra.run.dir")]
