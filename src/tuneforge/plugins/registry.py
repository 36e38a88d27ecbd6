"""The plugins of this process: refreshed by each composition, asked by whoever resolves a `_target_`."""

import sys
from collections.abc import Callable
from pathlib import Path

from tuneforge.plugins.plugin import Plugin

_plugins: tuple[Plugin, ...] = ()
_forget: list[Callable[[], None]] = []


def use(plugins: tuple[Plugin, ...]) -> None:
    """Make these the plugins of this process; what was read of others' code is forgotten."""
    global _plugins  # noqa: PLW0603  one process has one set of plugins, as it has one sys.path
    if plugins != _plugins:
        _plugins = plugins
        for forget in _forget:
            forget()


def on_change(forget: Callable[[], None]) -> None:
    """Call `forget` whenever the plugins change."""
    _forget.append(forget)


def plugins() -> tuple[Plugin, ...]:
    """All of them, broken ones too."""
    return _plugins


def healthy() -> tuple[Plugin, ...]:
    """Those without a trouble: their options can be chosen."""
    return tuple(p for p in _plugins if not p.troubles)


def owner_of(package: str) -> Plugin | None:
    """The plugin whose package this is."""
    return next((p for p in _plugins if p.package == package), None)


def package_dir(package: str) -> Path | None:
    """Where a plugin's package is, for reading its code; None for packages of no plugin."""
    owner = owner_of(package)
    return owner.package_dir if owner else None


def make_importable(package: str) -> None:
    """Put the folder of a dropped plugin at the end of the import path; an installed one is there."""
    owner = owner_of(package)
    if owner is None or owner.installed or owner.package_dir is None:
        return
    folder = str(owner.package_dir.parent)
    if folder not in sys.path:
        sys.path.append(folder)
