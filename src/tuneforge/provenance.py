"""Where each value of a composed config came from: every option file and override that set it, in order."""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_loader import ConfigLoader
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override

from tuneforge.masking import mask, masked
from tuneforge.option_files import Options
from tuneforge.yaml_files import node_of

COMMAND_LINE = "command line: "


@dataclass(frozen=True)
class Origin:
    """What set one leaf."""

    where: str
    """`conf/optim/adamw.yaml:4`, `command line: optim.lr=1e-3`, or `default of ...`."""
    expression: str = ""
    """The interpolation that stood there, or ""."""
    written: str = ""
    """What stood there, as written."""
    replaced: "tuple[Origin, ...]" = ()
    """What had set the leaf before, oldest first."""

    @property
    def typed(self) -> str:
        """The override that was typed, or "" for an origin that is none."""
        return self.where.removeprefix(COMMAND_LINE) if self.where.startswith(COMMAND_LINE) else ""

    @property
    def chain(self) -> "tuple[Origin, ...]":
        """All that set the leaf, oldest first, this last."""
        return (*self.replaced, replace(self, replaced=()))

    def as_dict(self) -> dict[str, Any]:
        """For provenance.json."""
        return asdict(self)

    @classmethod
    def of_dict(cls, kept: Mapping[str, Any]) -> "Origin":
        """The opposite of `as_dict`.

        Raises:
            TypeError: something else stands there.
        """
        texts = (kept["where"], kept["expression"], kept.get("written", ""))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError(f"an origin is made of texts, got {texts}")
        return cls(*texts, tuple(cls.of_dict(o) for o in kept.get("replaced", ())))


def masked_origin(path: str, origin: Origin) -> Origin:
    """The origin of a leaf without what was written there, where that is a secret."""
    return replace(
        origin,
        where=mask(origin.where),
        written=masked(origin.written, path),
        replaced=tuple(masked_origin(path, o) for o in origin.replaced),
    )


def trace(
    loader: ConfigLoader, defaults: DefaultsList, overrides: list[str], values: Iterable[Override]
) -> tuple[dict[str, Origin], dict[str, str]]:
    """Dotted path -> origin of every leaf, and group -> what picked its option.

    Later settings win, as in the composition.
    """
    origins: dict[str, Origin] = {}
    pickers: dict[str, str] = {}
    for default in defaults.defaults:
        if default.config_path is None or "hydra" in (default.package or "", default.config_path.split("/")[0]):
            continue
        if (default.package or "").startswith("hydra."):
            continue
        for path, origin in _settings(loader, default):
            _set(origins, path, origin)
        group, _, option = default.config_path.rpartition("/")
        if group and default.parent:
            pickers[group] = f"{_shown(loader, default.parent)} ({group}: {option})"
    for group, how in defaults.overrides.override_metadata.items():
        option = str(defaults.overrides.override_choices[group])
        if how.external_override:
            pickers[group] = f"{COMMAND_LINE}{group}={option}"
        elif how.containing_config_path:
            pickers[group] = f"{_shown(loader, how.containing_config_path)} (override {group}: {option})"
    for line in overrides:
        if line.startswith("+") and not line.startswith("++"):
            pickers[line.partition("=")[0].lstrip("+")] = f"{COMMAND_LINE}{line.lstrip('+')}"
    for override in values:
        for path, origin in _typed_settings(override):
            _set(origins, path, origin)
    return origins, {g: p for g, p in pickers.items() if not g.startswith("hydra/")}


def origin_of(origins: Mapping[str, Origin], path: str) -> str:
    """The origin of a path, or of the nearest node around it that something set."""
    while path:
        if path in origins:
            return origins[path].where
        below = next((o for p, o in origins.items() if p.startswith(f"{path}.")), None)
        if below is not None:
            return below.where if below.typed else below.where.rpartition(":")[0]
        path = path.rpartition(".")[0]
    return ""


def add_defaults(origins: dict[str, Origin], defaults: Mapping[str, tuple[Any, str]]) -> None:
    """Put each schema default (its value, its class) first in the chain of its leaf, or as all there is."""
    for path, (value, schema) in defaults.items():
        first = Origin(f"default of {schema}", written=_as_written(value))
        if path not in origins:
            origins[path] = first
        elif not any(o.where == first.where for o in origins[path].chain):
            origins[path] = replace(origins[path], replaced=(first, *origins[path].replaced))


def _settings(loader: ConfigLoader, default: ResultDefault) -> Iterator[tuple[str, Origin]]:
    """What one option file sets."""
    package = default.package or ""
    found = _find(loader, default.config_path or "")
    if found is None:
        return
    text, shown = found
    for path, line, expression, written in _written(text):
        if path.split(".")[0] not in ("defaults", "hydra") or package:
            yield (f"{package}.{path}" if package else path), Origin(f"{shown}:{line}", expression, written)


@functools.lru_cache(maxsize=1024)
def _written(text: str) -> tuple[tuple[str, int, str, str], ...]:
    """Path, line, interpolation and text of each leaf of a YAML file."""
    found = []
    for path, line, node in _leaves(node_of(text)):
        expression = node.value if isinstance(node, yaml.ScalarNode) and "${" in node.value else ""
        found.append((path, line, expression, text[node.start_mark.index : node.end_mark.index].strip()))
    return tuple(found)


def _typed_settings(override: Override) -> Iterator[tuple[str, Origin]]:
    """What one override sets."""
    text = (override.input_line or "").removeprefix("++")
    key, value, written = override.key_or_group, override.value(), text.partition("=")[2]
    origin = Origin(f"{COMMAND_LINE}{text}", written if "${" in written else "", written)
    for path in [f"{key}.{p}" for p in _flat(value)] if isinstance(value, dict) else [key]:
        yield path, origin


def _set(origins: dict[str, Origin], path: str, origin: Origin) -> None:
    for stale in [p for p in origins if p.startswith(f"{path}.")]:
        del origins[stale]
    before = origins.get(path)
    origins[path] = origin if before is None else replace(origin, replaced=before.chain)


def _shown(loader: ConfigLoader, config_path: str) -> str:
    found = _find(loader, config_path)
    return found[1] if found else config_path


def _find(loader: ConfigLoader, config_path: str) -> tuple[str, str] | None:
    """The text of an option file and the name to show for it."""
    for source in loader.get_sources():
        if isinstance(source, Options) and source.is_config(config_path):
            return source.text(config_path), source.shown(config_path)
    return None


def _leaves(node: yaml.Node | None, prefix: str = "") -> Iterable[tuple[str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _leaves(value, f"{prefix}.{key.value}" if prefix else str(key.value))
    elif node is not None and prefix:
        yield prefix, node.start_mark.line + 1, node


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict) and value:
            yield from _flat(value, path)
        else:
            yield path


def _as_written(value: Any) -> str:
    """A default in YAML, on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6)
    return text.removesuffix("...\n").strip()
