"""From option names and overrides to one checked, resolved config; all problems in one report.

Hydra composes untyped: its own structured checks stop at the first error, let `+` and `++` keys pass and know nothing
of a YAML that omits its schema. So value overrides are forced into the tree as they are, and `schema.check` judges the
whole tree, whatever door a key came through.
"""

import copy
import dataclasses
import math
import os
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers.oc import env

from tuneforge import inert, masking, rules
from tuneforge.config_bounds import MAX_VALUES, bounded_interpolations, exhausted
from tuneforge.errors import Problem, TuneforgeError, did_you_mean
from tuneforge.front import CONFIG_NAME, front, groups_in_defaults, noted_defaults
from tuneforge.hydra_node import is_hydra
from tuneforge.interpolation import leaves, lookup, replaced
from tuneforge.overrides import circular, deletes_nothing, normalise, option_of_broken_plugin
from tuneforge.plugins import registry
from tuneforge.plugins.discovery import taken_twice
from tuneforge.plugins.inspection import missing_requirements
from tuneforge.plugins.plugin import Plugin
from tuneforge.provenance import Origin, add_defaults, origin_of, trace
from tuneforge.schema import Config
from tuneforge.schema.check import ROOT, check
from tuneforge.schema.signature import NodeType, members, read_signature
from tuneforge.shell import local_path
from tuneforge.trial import Trial

T = TypeVar("T")

# Rounded to what a person would write: 3e-4 x 10 is 0.003.
OmegaConf.register_resolver("times", lambda *given: float(f"{math.prod(map(float, given)):.12g}"), replace=True)

PLACES = ("output_root", "resume")
"""Keys that say where a run is written or goes on, not what it does; so does `hydra.*`."""

_reads: list[tuple[str, str]] = []
"""Variables of the environment that were read while a key was resolved, with their values."""


def _environment(name: str, *default: Any) -> Any:
    """OmegaConf's `oc.env`; what was read is noted, so that it can be kept out of every file."""
    value = env(name, *default)
    if name in os.environ:
        _reads.append((name, str(value)))
    return value


OmegaConf.register_resolver("oc.env", _environment, replace=True)


@dataclass(frozen=True)
class Composed:
    """A config that is known to be good."""

    config: Config
    """Typed view of `tree`: what the framework itself reads."""
    tree: dict[str, Any]
    """Resolved plain containers, the options of each `_target_` included."""
    choices: dict[str, str]
    """Group -> option."""
    overrides: tuple[str, ...]
    """As typed."""
    origins: dict[str, Origin]
    """Dotted path -> what set it."""
    run_dir: Path
    """Hydra's run folder, not yet made."""
    pickers: dict[str, str] = field(default_factory=dict)
    """Group -> what picked its option."""
    config_dirs: tuple[Path, ...] = ()
    """The folders of `--config-dir`."""
    warnings: tuple[Problem, ...] = ()
    """What is allowed and likely not meant."""
    notes: tuple[str, ...] = ()
    """Lines to print before the run: what differs from the run it was started from."""
    base: Path | None = None
    """The run folder it was started from."""
    plugins: tuple[Plugin, ...] = ()
    """The plugins it draws on."""
    trial: Trial | None = None
    """The trial of a sweep that it is."""
    from_environment: Mapping[str, Any] = field(default_factory=dict)
    """Dotted path -> the interpolation of a leaf whose value was read from the environment."""

    @property
    def recorded(self) -> dict[str, Any]:
        """The tree as files, trackers and people see it: secrets masked, environment variables not resolved."""
        shown: dict[str, Any] = masking.masked(replaced(self.tree, self.from_environment))
        return shown


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[Path] = ()) -> Composed:
    """Compose, check and resolve.

    Raises:
        TuneforgeError: with every problem of this config.
    """
    with bounded_interpolations():
        return _compose(overrides, config_dirs)


def _compose(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Composed:
    in_defaults = groups_in_defaults()
    with front(config_dirs) as loader, noted_defaults() as noted:
        lines, parsed, problems = normalise(loader, overrides, in_defaults)
        try:
            tree = loader.load_configuration(CONFIG_NAME, lines, RunMode.RUN)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            problem = _broken_owner(error) or deletes_nothing(error, loader, lines) or from_hydra(error)
            raise TuneforgeError.of([*problems, problem]) from error
        except RecursionError as error:
            raise circular(lines) from error
        origins, pickers = trace(loader, noted[-1], lines, [o for o in parsed if not is_hydra(o)])
    with open_dict(tree):
        _show_defaults(tree, ROOT.target)
    hydra = tree.hydra
    run_dir = _run_dir(hydra, problems)
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/") and v is not None}
    resolution = _Resolution(problems, origins)
    resolved, reads = resolution.of(tree), resolution.reads
    masking.remember_keys(resolved)
    problems += masked_values(resolved)
    for place, key in ((run_dir, "hydra.run.dir"), (Path(str(resolved.get("output_root", ""))), "output_root")):
        problems += secret_in_path(place, key)
    used = used_plugins(choices, resolved)
    composed = judge(resolved, origins, [*problems, *_plugin_problems(choices, used)])
    return dataclasses.replace(
        composed,
        choices=choices,
        overrides=tuple(overrides),
        run_dir=run_dir,
        pickers=pickers,
        config_dirs=tuple(config_dirs),
        plugins=used,
        from_environment=reads,
    )


def _run_dir(hydra: DictConfig, problems: list[Problem]) -> Path:
    """Where the run goes; what cannot be worked out is a problem."""
    try:
        value = hydra.run.dir
    except OmegaConfBaseException as error:
        first = str(error).strip().splitlines()[0]
        problems.append(Problem("unresolved", f"cannot be worked out: {first}", "hydra.run.dir"))
        return Path()
    return named_folder(value, "hydra.run.dir")


def named_folder(value: object, path: str) -> Path:
    """A folder of Hydra's node, which no schema of ours checks.

    Raises:
        TuneforgeError: it is no text, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        message = f"is {'empty' if value == '' else repr(value)}, and names no folder"
        raise TuneforgeError("wrong-value", message, path=path, fix=f"name a folder: {path}=DIR")
    return local_path(value)


def reread(tree: Mapping[str, Any], paths: Collection[str]) -> tuple[dict[str, Any], list[Problem], dict[str, Any]]:
    """A recorded tree with the leaves at `paths` resolved; no other text in it is an interpolation.

    Also returns the problems, and the interpolations of the leaves that read the environment.
    """
    # A text with `${` elsewhere was written so on purpose (`\\${`), and must not be resolved.
    others = {p: "" for p, v in leaves(tree).items() if "${" in str(v) and p not in paths}
    problems: list[Problem] = []
    resolution = _Resolution(problems, {})
    with bounded_interpolations():
        resolved, reads = resolution.of(OmegaConf.create(replaced(tree, others))), resolution.reads
    masking.remember_keys(resolved)
    known: dict[str, Any] = {}
    for path in paths:
        with suppress(KeyError):  # it could not be worked out, which is a problem, or is no path of the tree
            known[path] = lookup(resolved, path)
    return replaced(tree, known), problems, reads


def secret_in_path(folder: Path, path: str) -> Iterator[Problem]:
    """A folder's name is in every message and listing, and cannot be masked there."""
    shown = masking.mask(str(folder), pairs=False)
    if shown.count(masking.MASK) > str(folder).count(masking.MASK):
        message = "names a folder after a secret, which every listing would show"
        yield Problem("secret-in-path", message, path, fix=f"leave the secret out of the name: {shown}")


def masked_values(tree: Mapping[str, Any]) -> Iterator[Problem]:
    """Values that are masked: they were copied from a file that a run or a sweep has written."""
    for path, value in leaves(tree).items():
        if isinstance(value, str) and masking.is_masked(value):
            message = "is a secret that was masked where this value comes from"
            yield Problem("masked-value", message, path, fix=f"give it again: {path}=...")


def used_plugins(choices: Mapping[str, str], tree: Mapping[str, Any]) -> tuple[Plugin, ...]:
    """The plugins that a config draws on: by an option of theirs, or by a name in their package."""
    packages = {target.partition(".")[0] for target in _targets(tree)}
    # The two keys that can name a plugin's code or file without a `_target_`.
    for path, mark in (("data.format", "."), ("model.chat_template", ":")):
        with suppress(KeyError):
            packages.add(str(lookup(tree, path)).partition(mark)[0])
    chosen = set(choices.items())
    return tuple(
        p
        for p in registry.healthy()
        if p.package in packages or any((g, o) in chosen for g, options in p.options.items() for o in options)
    )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for inner in node.values():
            yield from _targets(inner)


def _plugin_problems(choices: Mapping[str, str], used: Sequence[Plugin]) -> Iterator[Problem]:
    """Options that two plugins have, and requirements that are not installed."""
    for (group, option), owners in taken_twice(registry.healthy()).items():
        if choices.get(group) == option:
            message = f"{option!r} is an option of {' and of '.join(p.label for p in owners)}"
            fix = f"remove one, or choose: TUNEFORGE_PLUGINS={owners[0].name}"
            yield Problem("option-taken-twice", message, group, fix=fix)
    for plugin in used:
        missing = missing_requirements(plugin)
        if missing:
            fix = f"pip install {' '.join(map(repr, missing))}"
            yield Problem("plugin-needs", f"{plugin.label} needs {', '.join(missing)}", fix=fix)


def _broken_owner(error: Exception) -> Problem | None:
    """An option that Hydra does not find because its plugin is broken."""
    missing = getattr(error, "missing_cfg_file", None)
    group, _, option = str(missing or "").rpartition("/")
    return option_of_broken_plugin(group, option)


def _show_defaults(node: DictConfig, schema: str) -> None:
    """Put the schema's own defaults where nothing is set, so that interpolations see them too."""
    for name, option in read_signature(schema).fields.items():
        nested = next((m for m in members(option.type) if isinstance(m, NodeType)), None)
        if name not in node:
            if not option.required and option.default is not ...:
                node[name] = copy.deepcopy(option.default)
        elif nested is not None and not OmegaConf.is_interpolation(node, name) and OmegaConf.is_dict(node[name]):
            _show_defaults(node[name], nested.target)


def judge(tree: Mapping[str, Any], origins: dict[str, Origin], found: Sequence[Problem] = ()) -> Composed:
    """A resolved tree as a config that is known to be good; `found` are problems of composing it.

    Raises:
        TuneforgeError: with every problem of the tree, and those `found`.
    """
    checked = check(tree, lambda path: origin_of(origins, path))
    problems = [*found, *(p for p in checked.problems if p.path not in {q.path for q in found})]
    if problems:
        raise TuneforgeError.of(problems)
    origins = dict(origins)
    add_defaults(origins, checked.defaults)
    config = structure(Config, checked.tree)
    broken = [dataclasses.replace(p, origin=origin_of(origins, p.path)) for p in rules.broken(config, checked.tree)]
    if broken:
        raise TuneforgeError.of(broken)
    warnings = tuple(inert.keys_without_effect(config, checked.tree, origins))
    return Composed(config, checked.tree, {}, (), origins, Path(), warnings=warnings)


def structure(cls: type[T], tree: Mapping[str, Any]) -> T:
    """A checked tree as the dataclass `cls`; options of `_target_`s stay in the tree alone."""
    hints = typing.get_type_hints(cls)
    given: dict[str, Any] = {}
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]
        value, hint = tree[one.name], hints[one.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            value = structure(hint, value)
        elif typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            value = {k: structure(typing.get_args(hint)[1], v) for k, v in value.items()}
        given[one.name] = value
    return cls(**given)


def from_hydra(error: Exception) -> Problem:
    """Hydra's own message without its stack: a broken option file, a deletion that matches nothing."""
    cause = error.__cause__ if not str(error).strip() and error.__cause__ else error
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    return Problem("broken-option-file", lines[0] if lines else type(error).__name__, fix="\n  ".join(lines[1:]))


class _Resolution:
    """Plain containers with every interpolation worked out; one that cannot be is a problem and is left out."""

    def __init__(self, problems: list[Problem], origins: Mapping[str, Origin]) -> None:
        self.problems = problems
        self.origins = origins
        self.values = 0
        self.reads: dict[str, Any] = {}
        """Dotted path -> the interpolation of each leaf that reads the environment."""
        _reads.clear()

    def of(self, node: DictConfig, path: str = "", *, in_list: bool = False) -> dict[str, Any]:
        """The mapping at `path`; what one in a list reads is recorded with the whole list, which is the leaf."""
        done: dict[str, Any] = {}
        for key in map(str, node):
            where = f"{path}.{key}" if path else key
            if where == "hydra":
                continue
            before = len(_reads)
            try:
                if not OmegaConf.is_missing(node, key):
                    done[key] = self._value(node[key], where, in_list)
                    # A mapping is a leaf where one interpolation stands for all of it.
                    whole = not isinstance(done[key], dict) or OmegaConf.is_interpolation(node, key)
                    if len(_reads) > before and whole and not in_list:
                        self.reads[where] = _as_written(node, key)
                        _remember_reads(where, _reads[before:])
            except OmegaConfBaseException as error:
                if exhausted():
                    raise self._too_large(where) from error
                self.problems.append(_unresolved(node, where, error, origin_of(self.origins, where)))
        return done

    def _value(self, value: Any, where: str, in_list: bool = False) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise self._too_large(where)
        if isinstance(value, DictConfig):
            return self.of(value, where, in_list=in_list)
        return [self._value(item, where, in_list=True) for item in value] if isinstance(value, ListConfig) else value

    def _too_large(self, where: str) -> TuneforgeError:
        message = "the config has more values, or more interpolations to work out, than any config"
        origin = origin_of(self.origins, where)
        return TuneforgeError(
            "yaml-too-large", message, path=where, origin=origin, fix="check the file where it is set"
        )


def _as_written(node: DictConfig, key: str) -> Any:
    """A leaf with its interpolations, as a file keeps it."""
    raw = node._get_node(key)
    return OmegaConf.to_container(raw, resolve=False) if isinstance(raw, ListConfig) else raw._value()  # type: ignore[union-attr]


def _remember_reads(where: str, reads: Sequence[tuple[str, str]]) -> None:
    """Have what a key has read from the environment masked in texts; a folder to write to is no secret."""
    if where not in PLACES:
        for name, value in reads:
            masking.remember_read(name, value)


def _unresolved(node: DictConfig, where: str, error: OmegaConfBaseException, origin: str) -> Problem:
    """A key that an interpolation reads and that is not there is told with those that are."""
    first = str(error).strip().splitlines()[0]
    missing = re.match(r"Interpolation key '(.+)' not found", first)
    if missing is None:
        return Problem("unresolved", f"cannot be worked out: {first}", where, origin)
    around: Any = node._get_root()
    fix = f"set {missing[1]}, or {where} itself"
    for part in missing[1].lstrip(".").split("."):
        if not OmegaConf.is_dict(around):
            break
        if part not in around:
            fix = did_you_mean(part, map(str, around))
            break
        around = around._get_node(part)
    return Problem("unresolved", f"cannot be worked out: it reads {missing[1]}, which is not there", where, origin, fix)
