"""From option names and overrides to one checked, resolved config; all problems in one report.

Hydra composes untyped: its own structured checks stop at the first error, let `+` and `++` keys pass and know nothing
of a YAML that omits its schema. So value overrides are forced into the tree as they are, and `schema.check` judges the
whole tree, whatever door a key came through.
"""

import copy
import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from hydra import initialize_config_module
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from tuneforge import inert, rules
from tuneforge.errors import Problem, TuneforgeError, did_you_mean
from tuneforge.provenance import Origin, add_defaults, origin_of, trace
from tuneforge.schema import Config
from tuneforge.schema.check import ROOT, check
from tuneforge.schema.signature import NodeType, members, read_signature

CONFIG_MODULE = "tuneforge.conf"
CONFIG_NAME = "config"

T = TypeVar("T")

OmegaConf.register_resolver("times", lambda a, b: a * b, replace=True)


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


class _ConfigDirs(SearchPathPlugin):
    """Appends the folders given with --config-dir; never prepends, so that nothing of ours is shadowed."""

    dirs: tuple[Path, ...] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in self.dirs:
            search_path.append("config-dir", f"file://{folder}")


@contextmanager
def front(config_dirs: Sequence[Path] = ()) -> Iterator[ConfigLoader]:
    """Hydra's loader over our option files and `config_dirs`."""
    missing = [d for d in config_dirs if not d.is_dir()]
    if missing:
        raise TuneforgeError(
            "no-config-dir",
            f"--config-dir {missing[0]}: there is no such folder",
            fix=f"looked at {missing[0].resolve()}",
        )
    _ConfigDirs.dirs = tuple(d.resolve() for d in config_dirs)
    plugins = Plugins.instance()
    if _ConfigDirs not in plugins.discover(SearchPathPlugin):
        plugins.register(_ConfigDirs)
    # A job of a sweep composes inside of Hydra's own main, whose state must be there again afterwards.
    outer = Singleton.get_state() if GlobalHydra.instance().is_initialized() else None
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONFIG_MODULE, job_name="tuneforge"):
            yield GlobalHydra.instance().config_loader()
    finally:
        if outer is not None:
            Singleton.set_state(outer)


def compose(overrides: Sequence[str] = (), config_dirs: Sequence[Path] = ()) -> Composed:
    """Compose, check and resolve.

    Raises:
        TuneforgeError: with every problem of this config.
    """
    in_defaults = _groups_in_defaults()
    with front(config_dirs) as loader:
        lines, parsed, problems = _normalise(loader, overrides, in_defaults)
        try:
            tree = loader.load_configuration(CONFIG_NAME, lines, RunMode.RUN)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise TuneforgeError.of([*problems, _from_hydra(error)]) from error
        origins, pickers = trace(loader, CONFIG_NAME, lines, [o for o in parsed if not _is_hydra(o)])
    with open_dict(tree):
        _show_defaults(tree, ROOT.target)
    hydra = tree.hydra
    run_dir = Path(hydra.run.dir)
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/") and v is not None}
    resolved = _resolve(tree, "", problems, origins)
    del resolved["hydra"]
    composed = judge(resolved, origins, problems)
    return dataclasses.replace(
        composed,
        choices=choices,
        overrides=tuple(overrides),
        run_dir=run_dir,
        pickers=pickers,
        config_dirs=tuple(config_dirs),
    )


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


def groups(loader: ConfigLoader) -> dict[str, list[str]]:
    """Group -> its options, of every folder on the search path."""
    found = {g: loader.get_group_options(g) for g in loader.list_groups("") if g != "hydra" and not g.startswith("_")}
    return {g: options for g, options in found.items() if options}


def _normalise(
    loader: ConfigLoader, overrides: Sequence[str], in_defaults: frozenset[str], sweeping: bool = False
) -> tuple[list[str], list[Override], list[Problem]]:
    """Overrides as Hydra takes them, the value overrides among them, and the problems of those left out."""
    known = groups(loader)
    lines: list[str] = []
    values: list[Override] = []
    problems: list[Problem] = []
    parser = OverridesParser.create()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            fix = (
                ""
                if "=" in text
                else "an override is written key=value; run `python -m tuneforge --help` for the verbs"
            )
            problems.append(
                Problem(
                    "unreadable-override",
                    f"cannot read the argument {text!r}",
                    fix=fix or "quote special characters: 'key=\"a,b\"'",
                )
            )
            continue
        problem = _group_problem(override, known) or (None if sweeping else _sweep_problem(override))
        if problem:
            problems.append(problem)
        elif _is_hydra(override) or override.is_delete() or override.is_list_extend():
            lines.append(text)
        elif override.key_or_group in known and (
            override.is_sweep_override() or not isinstance(override.value(), dict)
        ):
            prefix = "" if override.key_or_group in in_defaults else "+"
            lines.append(prefix + text.lstrip("+"))
        else:
            lines.append("++" + text.lstrip("+"))
            values.append(parser.parse_override(lines[-1]))
    return lines, values, problems


def _group_problem(override: Override, known: Mapping[str, list[str]]) -> Problem | None:
    group = override.key_or_group
    if "/" in group and not _is_hydra(override) and group not in known:
        return Problem(
            "unknown-group",
            "there is no such config group",
            group,
            f"command line: {override.input_line}",
            did_you_mean(group, known),
        )
    if group not in known or override.is_delete() or override.is_sweep_override():
        return None
    chosen = override.value()
    if chosen is None:
        origin = f"command line: {override.input_line}"
        return Problem(
            "no-option", "a run needs an option of this group", group, origin, f"options: {', '.join(known[group])}"
        )
    for option in chosen if isinstance(chosen, list) else [chosen]:
        if option is not None and not isinstance(option, dict) and str(option) not in known[group]:
            return Problem(
                "unknown-option",
                f"there is no option {str(option)!r} in this group",
                group,
                f"command line: {override.input_line}",
                did_you_mean(str(option), known[group]),
            )
    return None


def _sweep_problem(override: Override) -> Problem | None:
    if not override.is_sweep_override():
        return None
    return Problem(
        "several-values",
        "several values need --multirun",
        override.key_or_group,
        f"command line: {override.input_line}",
        f"add -m to try each, or write a list as {override.key_or_group}=[...]",
    )


@functools.cache
def _groups_in_defaults() -> frozenset[str]:
    """Groups of which every run has an option. Ours alone say so: a folder of the user's cannot shadow config.yaml."""
    with front() as loader:
        return frozenset(loader.compute_defaults_list(CONFIG_NAME, [], RunMode.RUN).overrides.known_choices)


def _is_hydra(override: Override) -> bool:
    return override.key_or_group == "hydra" or override.key_or_group.startswith(("hydra.", "hydra/"))


def _from_hydra(error: Exception) -> Problem:
    """Hydra's own message without its stack: a broken option file, a deletion that matches nothing."""
    cause = error.__cause__ if not str(error).strip() and error.__cause__ else error
    lines = [line.strip() for line in str(cause).strip().splitlines() if line.strip()]
    return Problem("broken-option-file", lines[0] if lines else type(error).__name__, fix="\n  ".join(lines[1:]))


def _resolve(node: DictConfig, path: str, problems: list[Problem], origins: Mapping[str, Origin]) -> dict[str, Any]:
    """Plain containers with every interpolation worked out; one that cannot be is a problem and is left out."""
    done: dict[str, Any] = {}
    for key in map(str, node):
        where = f"{path}.{key}" if path else key
        if where == "hydra":
            done["hydra"] = None
            continue
        try:
            value = None if OmegaConf.is_missing(node, key) else node[key]
            if OmegaConf.is_missing(node, key):
                continue
            if isinstance(value, DictConfig):
                done[key] = _resolve(value, where, problems, origins)
            else:
                done[key] = OmegaConf.to_container(value, resolve=True) if isinstance(value, ListConfig) else value
        except OmegaConfBaseException as error:
            problems.append(_unresolved(node, where, error, origin_of(origins, where)))
    return done


def _unresolved(node: DictConfig, where: str, error: OmegaConfBaseException, origin: str) -> Problem:
    """A key that an interpolation reads and that is not there is told with those that are."""
    first = str(error).strip().splitlines()[0]
    missing = re.match(r"Interpolation key '(.+)' not found", first)
    if missing is None:
        return Problem("unresolved", f"cannot be worked out: {first}", where, origin)
    parent, _, last = missing[1].rpartition(".")
    around = OmegaConf.select(node._get_root(), parent, throw_on_missing=False) if parent else node._get_root()
    known = [str(k) for k in around] if OmegaConf.is_dict(around) else []
    fix = did_you_mean(last, known) if known else f"set {missing[1]}, or {where} itself"
    return Problem("unresolved", f"cannot be worked out: it reads {missing[1]}, which is not there", where, origin, fix)


def check_sweep(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> list[str]:
    """Refuse what no job of a sweep could compose, and return the overrides as Hydra's own front takes them.

    Raises:
        TuneforgeError: with every problem of the fixed overrides and of the first value of each swept one.
    """
    compose(first_of_sweep(overrides), config_dirs)
    in_defaults = _groups_in_defaults()
    with front(config_dirs) as loader:
        return _normalise(loader, overrides, in_defaults, sweeping=True)[0]


def first_of_sweep(overrides: Sequence[str]) -> list[str]:
    """The overrides with each sweep replaced by its first value."""
    parser = OverridesParser.create()
    first = []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            first.append(text)
            continue
        if override.is_discrete_sweep():
            key = text.partition("=")[0]
            first += [f"{key}={value!s}" for value in [*override.sweep_string_iterator()][:1]]
        elif not override.is_sweep_override():
            first.append(text)
    return first
