"""A foreign config in our words, and how it is written out: as a command line and as an experiment file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tuneforge.front import groups_in_defaults
from tuneforge.shell import command, is_plain, setting


@dataclass(frozen=True)
class Left:
    """A foreign key that was not carried, or not wholly."""

    key: str
    value: Any
    why: str


@dataclass
class Translation:
    """A foreign config in our words."""

    dialect: str
    choices: dict[str, str | list[str]] = field(default_factory=dict)
    """Group -> option."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> value."""
    left: list[Left] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    """Why the result would be another training than the file's: its objective or method does not exist here."""
    carried: list[str] = field(default_factory=list)
    """Foreign keys, of the file's top level, that needed nothing or became choices and values."""
    name: str = "imported"
    """What the experiment is called: the foreign file's name."""


def overrides(translation: Translation) -> list[str]:
    """The overrides of the command line, unquoted."""
    chosen = [f"{group}={option}" for group, option in translation.choices.items()]
    return chosen + [setting(path, value) for path, value in translation.values.items()]


def command_line(translation: Translation) -> str:
    """The command, quoted for a shell."""
    return command(*overrides(translation))


def experiment(translation: Translation, out: Path | None = None, use: str = "") -> str:
    """The experiment file; `out` is where it will lie, as DIR/experiment/NAME.yaml, and `use` the command for it."""
    folder = str(out.parent.parent) if out and out.parent.name == "experiment" else "DIR"
    name = out.stem if out else translation.name
    # A group of which not every run has an option is added, not overridden; Hydra wants overrides last. An experiment
    # can choose another one only under another key, which the package makes.
    chosen = {g + "@_global_" * (g == "experiment"): o for g, o in translation.choices.items()}
    added = [{f"/{g}": o} for g, o in chosen.items() if g not in groups_in_defaults()]
    overridden = [{f"override /{g}": o} for g, o in chosen.items() if g in groups_in_defaults()]
    nested: dict[str, Any] = {"defaults": [*added, *overridden]}
    for path, value in translation.values.items():
        *parents, last = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    line = use or command(setting("+experiment", name), config_dirs=[folder])
    body = yaml.dump(nested, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    return f"# @package _global_\n# {line}\n{body}"


class _Dumper(yaml.SafeDumper):
    """Quotes every text that some YAML reader could take for something else: OmegaConf's reads 1e5 as a number."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = is_plain(text) or text.startswith("override /")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _list(dumper: yaml.SafeDumper, items: list[Any]) -> yaml.SequenceNode:
    nested = any(isinstance(item, dict) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=not nested)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
