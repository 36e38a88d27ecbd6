"""Where each value of a composed config came from: option file and line, or command-line override."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import Override
from hydra.types import RunMode

COMMAND_LINE = "command line"


@dataclass(frozen=True)
class Origin:
    """What set one leaf."""

    where: str
    """`conf/optim/adamw.yaml:4`, or `command line: optim.lr=1e-3`."""
    expression: str = ""
    """The interpolation that stood there, or ""."""


def trace(
    loader: ConfigLoader, config_name: str, overrides: list[str], values: Iterable[Override]
) -> dict[str, Origin]:
    """Dotted path -> origin of every leaf that a file or an override set; later settings win, as in the composition."""
    origins: dict[str, Origin] = {}
    for default in loader.compute_defaults_list(config_name, overrides, RunMode.RUN).defaults:
        package = default.package or ""
        if default.config_path is None or package.startswith("hydra") or default.config_path.startswith("hydra"):
            continue
        found = _find(loader, default.config_path)
        if found is None:
            continue
        text, shown = found
        for path, line, expression in _leaves(yaml.compose(text, Loader=yaml.SafeLoader)):
            if path.split(".")[0] not in ("defaults", "hydra") or package:
                _set(origins, f"{package}.{path}" if package else path, Origin(f"{shown}:{line}", expression))
    for override in values:
        line_text = override.input_line or ""
        expression = line_text.partition("=")[2] if "${" in line_text else ""
        key = override.key_or_group
        origin = Origin(f"{COMMAND_LINE}: {line_text.removeprefix('++')}", expression)
        value = override.value()
        for path in [f"{key}.{p}" for p in _flat(value)] if isinstance(value, dict) else [key]:
            _set(origins, path, origin)
    return origins


def origin_of(origins: Mapping[str, Origin], path: str) -> str:
    """The origin of a path, or of the nearest node around it that something set."""
    while path:
        if path in origins:
            return origins[path].where
        below = next((o for p, o in origins.items() if p.startswith(f"{path}.")), None)
        if below is not None:
            return below.where.rpartition(":")[0] if below.where.startswith("conf") else below.where
        path = path.rpartition(".")[0]
    return ""


def _set(origins: dict[str, Origin], path: str, origin: Origin) -> None:
    for stale in [p for p in origins if p.startswith(f"{path}.")]:
        del origins[stale]
    origins[path] = origin


def _find(loader: ConfigLoader, config_path: str) -> tuple[str, str] | None:
    """The text of an option file and the name to show for it."""
    for source in loader.get_sources():
        if source.scheme() not in ("pkg", "file") or not source.is_config(config_path):
            continue
        relative = f"{config_path}.yaml"
        if source.scheme() == "pkg":
            file = resources.files(source.path.replace("/", ".")).joinpath(relative)
            return file.read_text(encoding="utf-8"), f"conf/{relative}"
        path = Path(source.path) / relative
        return path.read_text(encoding="utf-8"), str(path)
    return None


def _leaves(node: yaml.Node | None, prefix: str = "") -> Iterable[tuple[str, int, str]]:
    if isinstance(node, yaml.MappingNode) and node.value:
        for key, value in node.value:
            yield from _leaves(value, f"{prefix}.{key.value}" if prefix else str(key.value))
    elif node is not None and prefix:
        text = node.value if isinstance(node, yaml.ScalarNode) and "${" in node.value else ""
        yield prefix, node.start_mark.line + 1, text


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict) and value:
            yield from _flat(value, path)
        else:
            yield path
