"""Every plugin on this machine: installed with an entry point, or a folder dropped into `plugins/`.

Nothing is imported: a folder's pyproject.toml is read, and an installed package is found by the import system alone.
"""

import functools
import importlib.util
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from tuneforge.errors import TuneforgeError, did_you_mean
from tuneforge.plugins.inspection import inspect
from tuneforge.plugins.plugin import ENTRY_POINTS, Plugin, Trouble

CHOICE = "TUNEFORGE_PLUGINS"
"""off, or the names of the plugins to use; unset: all."""
PATH = "TUNEFORGE_PLUGIN_PATH"
"""Folders to look into beside `plugins/` of the working directory, separated like PATH."""
DROPPED = Path("plugins")
MAX_PYPROJECT = 1 << 20
"""Bytes; a project's has a few thousand."""


def discover() -> tuple[Plugin, ...]:
    """All plugins by name, each with its troubles.

    Raises:
        TuneforgeError: the choice names a plugin that is not there.
    """
    wanted = os.environ.get(CHOICE, "").strip()
    if wanted == "off":
        return ()
    found = _together([inspect(p) for p in (*_installed(tuple(sys.path)), *_dropped())])
    if not wanted:
        return found
    names = [n.strip() for n in wanted.split(",") if n.strip()]
    known = [p.name for p in found]
    for name in names:
        if name not in known:
            raise TuneforgeError("unknown-plugin", f"{CHOICE}: no plugin {name!r}", fix=did_you_mean(name, known))
    return tuple(p for p in found if p.name in names)


@functools.cache
def core_options() -> dict[str, frozenset[str]]:
    """Group -> the options that ship with tuneforge."""
    found: dict[str, set[str]] = defaultdict(set)
    for group in resources.files("tuneforge.conf").iterdir():
        if group.is_dir():
            found[group.name] = _options_in(group)
    found["sweep"] = _options_in(resources.files("tuneforge.sweeps"))
    return {group: frozenset(options) for group, options in found.items() if options}


def _options_in(folder: Traversable) -> set[str]:
    return {f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")}


@functools.cache
def _installed(path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Those of installed distributions; `path` is what their list depends on."""
    found = []
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        distribution = entry.dist
        package = entry.value.partition(":")[0]
        where = _package_dir(package)
        troubles = []
        if where is None:
            mend = f"pip install --force-reinstall {distribution.name}" if distribution else "install it again"
            troubles.append(Trouble(f"its entry point names {entry.value!r}, and there is no such package", mend))
        found.append(
            Plugin(
                name=entry.name,
                package=package,
                version=distribution.version if distribution else "unknown",
                origin=where or Path(package),
                installed=True,
                package_dir=where,
                requires=tuple(distribution.requires or ()) if distribution else (),
                troubles=tuple(troubles),
            )
        )
    return tuple(found)


def _package_dir(package: str) -> Path | None:
    """The folder of an importable top-level package, found without importing it."""
    try:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
    except (ImportError, ValueError):
        return None
    places = [*spec.submodule_search_locations] if spec and spec.submodule_search_locations else []
    return Path(places[0]).resolve() if places else None


def _dropped() -> Iterator[Plugin]:
    folders = [DROPPED, *(Path(p).expanduser() for p in os.environ.get(PATH, "").split(os.pathsep) if p)]
    places: dict[Path, Path] = {}
    for folder in folders:  # as they were named: a link on the way may be another user's
        places.setdefault(folder.resolve(), folder.absolute())
    for folder in places.values():
        for root in sorted(folder.iterdir()) if folder.is_dir() else []:
            # A folder of something else (notes, data) is none of ours.
            if root.is_dir() and not root.name.startswith((".", "_")) and looks_like_a_plugin(root):
                yield read_folder(root)


def looks_like_a_plugin(root: Path) -> bool:
    """Whether a folder means to be one: it has a pyproject.toml, or config groups."""
    return (root / "pyproject.toml").is_file() or (root / "conf").is_dir()


def read_folder(root: Path) -> Plugin:
    """The plugin in a folder, as its pyproject.toml tells it."""
    nothing = Plugin(root.name, "", "unknown", root, installed=False)
    file = root / "pyproject.toml"
    if not file.is_file():
        return replace(nothing, troubles=(Trouble("there is no pyproject.toml", _example(root.name)),))
    try:
        facts, points = _project(file)
    except (OSError, ValueError, RecursionError) as error:  # a TOMLDecodeError is a ValueError
        return replace(nothing, troubles=(Trouble(f"{file} is no TOML: {error}", "correct that line"),))
    if len(points) != 1 or not all(isinstance(v, str) and v.isidentifier() for v in points.values()):
        shown = points or "nothing"
        cause = f"{file} must name one package in [project.entry-points.{ENTRY_POINTS!r}], and names {shown}"
        return replace(nothing, troubles=(Trouble(cause, _example(root.name)),))
    ((name, package),) = points.items()
    where = next((p for p in (root / "src" / package, root / package) if p.is_dir()), None)
    read = replace(
        nothing,
        name=name,
        package=package,
        version=str(facts.get("version", "unknown")),
        package_dir=where.resolve() if where else None,
        requires=tuple(map(str, facts.get("dependencies") or ())),
    )
    if where is None:
        cause = f"{file} names the package {package!r}, and neither {package}/ nor src/{package}/ is there"
        return replace(read, troubles=(Trouble(cause, f"make the folder {root / 'src' / package}"),))
    return read


def _project(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table [project] of a pyproject.toml, and the plugin's entry points in it.

    Raises:
        ValueError: it is no TOML, one of the tables is something else, or it is far larger than a project's.
        OSError: it cannot be read.
        RecursionError: it is nested too deeply.
    """
    import tomllib

    with file.open("rb") as opened:
        raw = opened.read(MAX_PYPROJECT + 1)
    if len(raw) > MAX_PYPROJECT:
        raise ValueError(f"it is larger than {MAX_PYPROJECT:,} bytes")
    node: Any = tomllib.loads(raw.decode("utf-8"))
    tables = []
    for name in ("project", "entry-points", ENTRY_POINTS):
        node = node.get(name, {})
        if not isinstance(node, dict):
            raise ValueError(f"{name} is no table")
        tables.append(node)
    if not isinstance(tables[0].get("dependencies", []), list):
        raise ValueError("project.dependencies is no list")
    return tables[0], tables[2]


def _example(name: str) -> str:
    package = name.replace("-", "_")
    return f'write [project.entry-points."{ENTRY_POINTS}"] and under it {name} = "{package}"'


def _together(found: Sequence[Plugin]) -> tuple[Plugin, ...]:
    """Each with what only shows beside the others: names taken twice, options that are tuneforge's own."""
    # A folder that is also installed from there (pip install -e) is one plugin.
    places: dict[Path, Plugin] = {}
    for plugin in found:
        places.setdefault(plugin.package_dir or plugin.origin, plugin)
    single = sorted(places.values(), key=lambda p: (p.name, str(p.origin)))
    return tuple(replace(p, troubles=(*p.troubles, *_clashes(p, single))) for p in single)


def _clashes(plugin: Plugin, others: Sequence[Plugin]) -> Iterator[Trouble]:
    for other in others:
        if other is plugin:
            continue
        if other.name == plugin.name:
            yield Trouble(f"another plugin has its name: {other.label}", "remove one of the two")
        elif other.package == plugin.package and plugin.package:
            yield Trouble(f"another plugin has its package {plugin.package!r}: {other.label}", "remove one of the two")
    core = core_options()
    for group, options in plugin.options.items():
        for option in sorted(core.get(group, frozenset()).intersection(options)):
            cause = f"{group}={option} belongs to tuneforge, and {plugin.label} names an option so too"
            yield Trouble(cause, f"rename conf/{group}/{option}.yaml in the plugin")


def taken_twice(plugins: Sequence[Plugin]) -> dict[tuple[str, str], list[Plugin]]:
    """(group, option) -> the plugins that both add it."""
    owners: dict[tuple[str, str], list[Plugin]] = defaultdict(list)
    for plugin in plugins:
        for group, options in plugin.options.items():
            for option in options:
                owners[group, option].append(plugin)
    return {key: found for key, found in owners.items() if len(found) > 1}
