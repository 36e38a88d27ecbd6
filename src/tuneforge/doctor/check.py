"""One finding of `tuneforge doctor`, and the commands that mend what it names."""

import importlib.util
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "missing", "warn", "fail"]
"""missing: an optional part is not there. warn: something will not work, or not well. fail: the default job cannot."""

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    """What was looked at; the same word on every machine."""
    status: Status
    """How it is."""
    found: str
    """What is there, in one line."""
    fix: str = ""
    """The command that mends it, or what to do; "" when the status is ok."""


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name, "ok", found)


def missing(name: str, found: str, fix: str) -> Check:
    """An optional part that is not there."""
    return Check(name, "missing", found, fix)


def warn(name: str, found: str, fix: str) -> Check:
    """Something that will not work, or not well; the default job runs all the same."""
    return Check(name, "warn", found, fix)


def fail(name: str, found: str, fix: str) -> Check:
    """What keeps the default job from running."""
    return Check(name, "fail", found, fix)


def pip_install(*wanted: str, options: str = "") -> str:
    """The command that installs into this very Python, which need not be the first one on PATH."""
    extra = f"{options} " if options else ""
    what = extra + " ".join(map(shlex.quote, wanted))
    here = shlex.quote(sys.executable)
    if importlib.util.find_spec("pip") is None:  # uv makes environments without pip
        return f"uv pip install --python {here} {what}"
    first = shutil.which("python")
    # Folders, not files: python and python3 of one environment are the same; symlinks of two environments are not.
    python = "python" if first and Path(first).parent == Path(sys.executable).parent else here
    return f"{python} -m pip install {what}"


def system_install(debian: str, fedora: str) -> str:
    """The command that installs a system package, by whichever manager is there."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    return f"dnf install {fedora}" if shutil.which("dnf") else f"apt-get install {debian}"


def gib(size: float) -> str:
    """Bytes as people say them."""
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / MIB:.0f} MB"


def first_line(text: str) -> str:
    """The first line that says something, cut to fit on a console."""
    lines = [line.strip() for line in text.splitlines() if any(c.isalnum() for c in line)]
    line = lines[0] if lines else "no message"
    return line if len(line) <= 200 else line[:197] + "..."
