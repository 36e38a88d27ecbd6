"""The code that option files name, read from the files alone: what a config may name is what one of them does.

A `_target_` is trusted in the group in which an option file of tuneforge or of a healthy plugin names it, and nowhere
else. Being in a trusted package does not make a function an option.
"""

import functools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from tuneforge.errors import TuneforgeError
from tuneforge.option_files import CONFIG_MODULE, SWEEP, SWEEPS_MODULE, package_of
from tuneforge.plugins import registry
from tuneforge.plugins.plugin import Plugin
from tuneforge.yaml_files import read_text, read_yaml

FORMAT, EXTENSION = "data.format", "hydra.sweeper.custom_search_space"
"""Keys other than `_target_` that name a function."""
_LAUNCHER, _SWEEPER = "hydra/launcher", "hydra/sweeper"
_PLACES = {
    "hydra.launcher": _LAUNCHER,
    "hydra.sweeper": _SWEEPER,
    "hydra.sweeper.sampler": f"{_SWEEPER}/sampler",
    "hydra.sweeper.pruner": f"{_SWEEPER}/pruner",
}
_MAPPINGS = ("callbacks", "logger")
"""Groups that map any number of names to nodes with a `_target_`."""

Targets = Mapping[str, frozenset[str]]
"""Group, or one of the two keys above -> the dotted names that option files give there."""


def named(group: str) -> frozenset[str]:
    """What option files name in a group: those of tuneforge, and of the healthy plugins of this process."""
    return _core().get(group, frozenset()) | _of_plugins().get(group, frozenset())


@functools.cache
def _core() -> Targets:
    found = _read(resources.files(CONFIG_MODULE), "")
    for group, targets in _read(resources.files(SWEEPS_MODULE), SWEEP).items():
        found[group] |= targets
    return found


@functools.cache
def _of_plugins() -> Targets:
    """What plugins name in their own packages: an option file alone makes no other code trusted."""
    found: dict[str, frozenset[str]] = defaultdict(frozenset)
    for plugin in registry.healthy():
        for group, targets in _of(plugin).items():
            found[group] |= frozenset(t for t in targets if t.startswith(f"{plugin.package}."))
    return found


registry.on_change(_of_plugins.cache_clear)


def _of(plugin: Plugin) -> Targets:
    """What the option files of a plugin name; a file that cannot be read names nothing, and breaks who chooses it."""
    return {} if plugin.conf is None else _read(plugin.conf, "")


def _read(folder: Traversable, group: str) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for file, place in _files(folder, group):
        for key, target in _targets(file, place):
            found[key].add(target)
    return defaultdict(frozenset, {key: frozenset(targets) for key, targets in found.items()})


def _files(folder: Traversable, group: str) -> Iterator[tuple[Traversable, str]]:
    """Every option file, and its group."""
    for file in folder.iterdir():
        if isinstance(file, Path) and file.is_symlink() and file.is_dir():
            continue  # Hydra follows it, and it may lead to a folder above
        if file.is_dir():
            yield from _files(file, f"{group}/{file.name}".lstrip("/"))
        elif file.name.endswith(".yaml"):
            yield file, group


def _targets(file: Traversable, group: str) -> Iterator[tuple[str, str]]:
    """Each name of code in an option file, with the group or key that it is named for."""
    try:
        text = read_text(file)
        if not any(word in text for word in ("_target_", "format", "custom_search_space")):
            return
        data = read_yaml(text, str(file))
    except (TuneforgeError, OSError):
        return  # told with its line when the option is chosen
    for path, value in _leaves(data, package_of(text, group)):
        # A name is what stands there: one that is put together from other values is no option's.
        if isinstance(value, str) and "." in value and "${" not in value:
            key = path if path in (FORMAT, EXTENSION) else _group(path)
            if key:
                yield key, value


def _group(path: str) -> str:
    """The group whose code is named at `path`; "" where none is."""
    node, _, last = path.rpartition(".")
    if last != "_target_":
        return ""
    if node in _PLACES:
        return _PLACES[node]
    group, *inner = node.split(".")
    if len(inner) == (1 if group in _MAPPINGS else 0):
        return group
    # A node inside of an option's own: rows to score a model on, read by a source of the group `data`.
    return "data" if group != "hydra" else ""


def _leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, tree
