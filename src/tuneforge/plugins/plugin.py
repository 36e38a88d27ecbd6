"""What is known of a plugin without importing it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ENTRY_POINTS = "tuneforge.plugins"
"""Entry-point group: its one value is the plugin's package."""


@dataclass(frozen=True)
class Trouble:
    """Why a plugin cannot be used."""

    cause: str
    mend: str
    """The command or change that mends it."""


@dataclass(frozen=True)
class Plugin:
    """One plugin, healthy or not."""

    name: str
    """The entry point's name."""
    package: str
    """The package that its `_target_`s start with; "" where it could not be found out."""
    version: str
    origin: Path
    """The folder it was dropped as, or that it is installed in."""
    installed: bool
    """By pip, rather than dropped into a folder."""
    package_dir: Path | None = None
    """Where the package's files are."""
    requires: tuple[str, ...] = ()
    """The requirements it declares, as PEP 508 lines."""
    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Group -> the options it adds."""
    troubles: tuple[Trouble, ...] = ()

    @property
    def conf(self) -> Path | None:
        """Its config groups."""
        return None if self.package_dir is None else self.package_dir / "conf"

    @property
    def label(self) -> str:
        """How messages name it: its name and where it is."""
        return f"plugin {self.name} ({'installed in ' if self.installed else ''}{self.origin})"

    @cached_property
    def digest(self) -> str:
        """sha256 over names and contents of the package's files, caches left out."""
        total = hashlib.sha256()
        for file in sorted((self.package_dir or self.origin).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                total.update(str(file.relative_to(self.package_dir or self.origin)).encode() + b"\0")
                total.update(hashlib.sha256(file.read_bytes()).digest())
        return total.hexdigest()

    def as_record(self) -> dict[str, str]:
        """What run.json keeps of a plugin that a run used."""
        return {
            "name": self.name,
            "version": self.version,
            "package": self.package,
            "origin": str(self.origin),
            "sha256": self.digest,
        }
