"""What a plugin adds, and what is wrong with its files; none of them is imported."""

import ast
import importlib.util
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from tuneforge.plugins.files import file_troubles
from tuneforge.plugins.plugin import Plugin, Trouble


def inspect(plugin: Plugin) -> Plugin:
    """The plugin with its options, and with what is wrong with its folder."""
    if plugin.package_dir is None:
        return plugin
    troubles = [*plugin.troubles, *_folder_troubles(plugin)]
    return replace(plugin, options=_options(plugin.package_dir / "conf"), troubles=tuple(troubles))


def _options(conf: Path) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted(conf.rglob("*.yaml")):
        group = file.parent.relative_to(conf).as_posix()
        if group != ".":
            found[group].append(file.stem)
    return {group: tuple(options) for group, options in found.items()}


def _folder_troubles(plugin: Plugin) -> Iterator[Trouble]:
    assert plugin.package_dir is not None
    folder = plugin.package_dir
    if not (folder / "conf").is_dir():
        yield Trouble(f"{folder} has no conf/", "put its option files there: conf/GROUP/OPTION.yaml")
    if not plugin.installed:
        yield from _shadowed(plugin, folder)
    yield from file_troubles(plugin, folder)


def _shadowed(plugin: Plugin, folder: Path) -> Iterator[Trouble]:
    """A package of the same name that Python would find first."""
    try:
        spec = importlib.util.find_spec(plugin.package)
    except (ImportError, ValueError):
        return
    places = [Path(p).resolve() for p in (spec.submodule_search_locations or [spec.origin or ""])] if spec else []
    if places and folder.resolve() not in places:
        yield Trouble(f"Python has another package {plugin.package!r}, in {places[0]}", "rename the plugin's package")


def missing_requirements(plugin: Plugin) -> list[str]:
    """The declared requirements that this environment does not meet, as pip takes them."""
    if not plugin.requires:
        return []
    from packaging.requirements import InvalidRequirement, Requirement  # 20 ms that a start without plugins saves

    missing = []
    for line in plugin.requires:
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            missing.append(line)
            continue
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(str(wanted))
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            missing.append(f"{wanted} (there is {there})")
    return missing


def code_troubles(plugin: Plugin) -> list[Trouble]:
    """What a look at all of its code shows: files that are no Python, requirements that are not met."""
    found = []
    for file in sorted((plugin.package_dir or plugin.origin).rglob("*.py")):
        try:
            ast.parse(file.read_bytes(), filename=str(file))
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            found.append(Trouble(f"{file}{f':{line}' if line else ''} is no Python: {error}", "correct that line"))
    missing = missing_requirements(plugin)
    if missing:
        found.append(Trouble(f"it needs {', '.join(missing)}", f"pip install {' '.join(map(repr, missing))}"))
    return found
