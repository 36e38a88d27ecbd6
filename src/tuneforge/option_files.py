"""Option files as Hydra's sources of configs: those of the package, sweeps/, the plugins' and the user's."""

import builtins
import copy
import functools
import json
import re
from collections.abc import Mapping
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import OmegaConf

from tuneforge.config_bounds import complex_texts
from tuneforge.errors import TuneforgeError
from tuneforge.hydra_node import check_file
from tuneforge.yaml_files import read_text, read_yaml

CONFIG_MODULE = "tuneforge.conf"
OPTIONS = "options"
"""What the places of option files start with in Hydra's search path."""
SWEEPS, SWEEPS_MODULE = "sweeps", "tuneforge.sweeps"
"""The folder, and the package as which it ships."""
SWEEP = "sweep"
"""The group of the sweeps: no run has one unless it is asked for."""
TRUSTED = ("main", SWEEPS)
"""Providers of option files that ship with tuneforge."""
_PLACE = re.compile(r"/?[^\s@/:]+(/[^\s@/:]+)*(@[^\s@/:]+)?")
"""A group or an option in a defaults list: `/method`, `/hydra/sweeper/sampler`, `db@backup`."""
PLUGIN = "plugin "
"""What the places of a plugin's option files start with: `plugin NAME: /path/conf/method/x.yaml:3`."""


class Options(ConfigSource):
    """Option files of a package (`tuneforge.conf`) or of a folder. Hydra's own sources read YAML differently."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self._read: dict[str, tuple[str, Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: Hydra copies its sources for each composition, and what is read stays as it is."""
        return self

    @staticmethod
    def scheme() -> str:
        """Of their places in the search path."""
        return OPTIONS

    def root(self) -> Traversable:
        """The folder of the groups."""
        return Path(self.path) if Path(self.path).is_absolute() else resources.files(self.path)

    def file(self, config_path: str) -> Traversable:
        """The file of an option, which may not be there."""
        return self.root().joinpath(f"{config_path}.yaml")

    def shown(self, config_path: str) -> str:
        """The name of an option's file in messages."""
        if Path(self.path).is_absolute():
            owner = f"{self.provider}: " if self.provider.startswith(PLUGIN) else ""
            return f"{owner}{self.file(config_path)}"
        return f"conf/{config_path}.yaml"

    def text(self, config_path: str) -> str:
        """What an option's file says."""
        return self._content(config_path)[0]

    def data(self, config_path: str) -> dict[str, Any]:
        """Keys and values of an option, its defaults list included."""
        return copy.deepcopy(self._content(config_path)[1])

    def load_config(self, config_path: str) -> ConfigResult:
        """An option, as Hydra takes it."""
        config_path = config_path.removesuffix(".yaml")
        if not self.is_config(config_path):
            raise ConfigLoadError(f"Config not found : {config_path}")
        header = _header(self.text(config_path), self.shown(config_path))
        config = OmegaConf.create(self._content(config_path)[1])  # copies it
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", config, header)

    def _content(self, config_path: str) -> tuple[str, Any]:
        """Text and data of a file, read once: Hydra asks for each several times."""
        if config_path not in self._read:
            shown = self.shown(config_path)
            text = read_text(self.file(config_path), shown)
            group = None if self.provider in TRUSTED else config_path.rpartition("/")[0]
            self._read[config_path] = text, _parsed(text, shown, group)
        return self._read[config_path]

    def available(self) -> bool:
        """Whether there is such a place."""
        return self.root().is_dir()

    def is_group(self, config_path: str) -> bool:
        """Whether there is such a group."""
        return ".." not in config_path.split("/") and self.root().joinpath(config_path).is_dir()

    def is_config(self, config_path: str) -> bool:
        """Whether there is such an option."""
        config_path = config_path.removesuffix(".yaml")
        return ".." not in config_path.split("/") and self.file(config_path).is_file()

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """Groups and options of a group."""
        found: builtins.list[str] = []
        for file in self.root().joinpath(config_path).iterdir():
            self._list_add_result(found, f"{config_path}/{file.name}".lstrip("/"), file.name, results_filter)
        return sorted(set(found))


@functools.lru_cache(maxsize=1024)
def _parsed(text: str, shown: str, group: str | None) -> dict[str, Any]:
    """The data of an option file, checked; of the same text it is the same object, and is not written into.

    Args:
        text: what the file says.
        shown: its name in messages.
        group: the folder that it is in; None for a file that ships with tuneforge.
    """
    found = read_yaml(text, shown)
    if not isinstance(found, dict | None):
        message = f"{shown} holds a {type(found).__name__}, and an option is a mapping of keys to values"
        raise TuneforgeError("bad-yaml", message, fix="write key: value")
    for path, why in complex_texts(found or {}):
        raise TuneforgeError("yaml-too-large", f"{shown}: {path} {why}", path=path, fix="write the value itself")
    wrong = next(filter(None, map(_wrong_default, _defaults_of(found, shown))), "")
    if wrong:
        raise _bad_defaults(shown, wrong)
    if group is not None:
        check_file(found or {}, package_of(text, group), group, shown)
    return found or {}


class Sweeps(Options):
    """sweeps/ as the group `sweep`: beside conf/ for its readers, and in it for Hydra."""

    @staticmethod
    def scheme() -> str:
        """Of its place in the search path."""
        return SWEEPS

    def file(self, config_path: str) -> Traversable:
        """The file of a sweep."""
        return super().file(config_path.partition("/")[2])

    def shown(self, config_path: str) -> str:
        """Its name in messages."""
        return f"{SWEEPS}/{config_path.partition('/')[2]}.yaml"

    def is_group(self, config_path: str) -> bool:
        """It has one group."""
        return config_path in ("", SWEEP)

    def is_config(self, config_path: str) -> bool:
        """Whether the group has this option."""
        group, _, option = config_path.removesuffix(".yaml").partition("/")
        return group == SWEEP and bool(option) and super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> builtins.list[str]:
        """The group, or its options."""
        if config_path == SWEEP:
            names = [f.name for f in resources.files(SWEEPS_MODULE).iterdir()]
            options = sorted(n.removesuffix(".yaml") for n in names if n.endswith(".yaml"))
            return [] if results_filter == ObjectType.GROUP else options
        return [SWEEP] if config_path == "" and results_filter != ObjectType.CONFIG else []


def _defaults_of(found: Mapping[str, Any] | None, shown: str) -> builtins.list[Any]:
    defaults = (found or {}).get("defaults", [])
    if not isinstance(defaults, list):
        raise _bad_defaults(shown, f"it is {json.dumps(defaults, default=str)[:60]} where a list belongs")
    return defaults


def _bad_defaults(shown: str, wrong: str) -> TuneforgeError:
    message = f"{shown}: its defaults list cannot be read: {wrong}"
    fix = "write - GROUP: OPTION, - override /GROUP: OPTION, the name of an option in the same folder, or - _self_"
    return TuneforgeError("bad-yaml", message, path="defaults", fix=fix)


def _wrong_default(entry: Any) -> str:
    """What is wrong with an entry of a defaults list, for which Hydra raises ValueError or AssertionError."""
    shown = json.dumps(entry, default=str)[:60]
    if isinstance(entry, str):
        return _wrong_name(entry, shown)
    if not isinstance(entry, Mapping) or len(entry) != 1:
        return f"{shown} is neither one name nor one GROUP: OPTION"
    ((key, value),) = entry.items()
    *keywords, group = str(key).split() or [""]
    if not isinstance(key, str) or not _PLACE.fullmatch(group) or keywords not in ([], ["override"], ["optional"]):
        return f"{shown} names no group"
    texts = value if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(text, str) and text.strip() for text in texts):
        return f"{shown} has no name of an option"
    return next((f"{shown}: write {text} without .yaml" for text in texts if str(text).endswith(".yaml")), "")


def _wrong_name(entry: str, shown: str) -> str:
    if not _PLACE.fullmatch(entry):
        return f"{shown} names no option"
    return f"{shown}: write it without .yaml" if entry.partition("@")[0].endswith(".yaml") else ""


def package_of(text: str, group: str) -> str:
    """Where the keys of an option file go: its group's node, or what `# @package` says; "" for the whole config.

    Raises:
        TuneforgeError: that line cannot be read.
    """
    said, own = _header(text, group).get("package"), group.replace("/", ".")
    return own if said in (None, "_group_") else ("" if said == "_global_" else str(said))


def _header(text: str, name: str) -> dict[str, str | None]:
    try:
        return ConfigSource._get_header_dict(text[:512])
    except ValueError as error:
        fix = "write # @package _global_, or the path of a node"
        raise TuneforgeError("bad-yaml", f"{name}: {error}", fix=fix) from error
