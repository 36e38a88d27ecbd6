"""What was typed, as Hydra takes it: choices of options as they are, values forced into the tree for `schema.check`."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf

from tuneforge.config_bounds import too_complex
from tuneforge.errors import Problem, TuneforgeError, did_you_mean
from tuneforge.front import CONFIG_NAME, groups
from tuneforge.hydra_node import is_hydra, typed_problem
from tuneforge.plugins import registry
from tuneforge.shell import key_of


def normalise(
    loader: ConfigLoader, overrides: Sequence[str], in_defaults: frozenset[str], sweeping: bool = False
) -> tuple[list[str], list[Override], list[Problem]]:
    """Overrides as Hydra takes them, the value overrides among them, and the problems of those left out."""
    known = groups(loader)
    lines: list[str] = []
    values: list[Override] = []
    problems: list[Problem] = []
    parser = OverridesParser.create()
    for text in overrides:
        why = too_complex(text)
        if why:
            fix = "put what it sets into an option file (--config-dir DIR)"
            problems.append(Problem("unreadable-override", f"the argument {_shown(text)} {why}", fix=fix))
            continue
        try:
            override = _option_as_text(parser.parse_override(text), known)
        except (HydraException, ValueError):  # a number of more digits than Python reads
            problems.append(_unreadable(text))
            continue
        line = override.input_line or text
        problem = (
            typed_problem(override)
            or _group_problem(override, known)
            or _hydra_problem(loader, override)
            or _deletion_problem(loader, override)
            or (None if sweeping else _sweep_problem(override))
        )
        if problem:
            problems.append(problem)
        elif override.key_or_group.startswith("hydra.sweeper."):
            lines.append("++" + line.lstrip("+"))  # judged by its own schema, as the rest of the tree is
        elif is_hydra(override) or override.is_delete() or override.is_list_extend():
            lines.append(line)
        elif override.key_or_group in known and (
            override.is_sweep_override() or not isinstance(override.value(), dict)
        ):
            prefix = "" if override.key_or_group in in_defaults else "+"
            lines.append(prefix + line.lstrip("+"))
        else:
            lines.append("++" + line.lstrip("+"))
            values.append(parser.parse_override(lines[-1]))
    return lines, values, problems


def _unreadable(text: str) -> Problem:
    fix = "an override is written key=value; run `python -m tuneforge --help` for the verbs"
    fix = "quote special characters: 'key=\"a,b\"'" if "=" in text else fix
    return Problem("unreadable-override", f"cannot read the argument {_shown(text)}", fix=fix)


def parse(text: str) -> Override:
    """One override that was not typed in this command: of a sweep's file or of its space.

    Raises:
        ValueError: it cannot be read; the message is one line.
    """
    why = too_complex(text)
    if why:
        raise ValueError(why)
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _option_as_text(override: Override, known: Collection[str]) -> Override:
    """The override; of an option that is named by a number (hardware=3090), Hydra takes the text alone."""
    if override.key_or_group not in known or override.is_sweep_override():
        return override
    if not isinstance(override.value(), int | float):
        return override
    assert override.input_line is not None
    key, _, name = override.input_line.partition("=")
    return OverridesParser.create().parse_override(f"{key}='{name.strip()}'")


def _group_problem(override: Override, known: Mapping[str, list[str]]) -> Problem | None:
    group = override.key_or_group
    if "/" in group and not is_hydra(override) and group not in known:
        return Problem(
            "unknown-group",
            "there is no such config group",
            group,
            f"command line: {override.input_line}",
            did_you_mean(group, known),
        )
    if group not in known or override.is_sweep_override():
        return None
    if override.is_delete():
        named = override.value() is None or isinstance(override.value(), str)
        message, origin = "is deleted by its name or by that of its option", f"command line: {override.input_line}"
        return None if named else Problem("unknown-option", message, group, origin, f"write ~{group}")
    chosen = override.value()
    if chosen is None:
        origin = f"command line: {override.input_line}"
        return Problem(
            "no-option", "a run needs an option of this group", group, origin, f"options: {', '.join(known[group])}"
        )
    for option in chosen if isinstance(chosen, list) else [chosen]:
        if option is not None and not isinstance(option, dict) and str(option) not in known[group]:
            broken = option_of_broken_plugin(group, str(option), f"command line: {override.input_line}")
            return broken or Problem(
                "unknown-option",
                f"there is no option {str(option)!r} in this group",
                group,
                f"command line: {override.input_line}",
                did_you_mean(str(option), known[group]),
            )
    return None


def _hydra_problem(loader: ConfigLoader, override: Override) -> Problem | None:
    """An option that a group of Hydra's own (hydra/sweeper, hydra/launcher and those in them) does not have."""
    group = override.key_or_group
    if not group.startswith("hydra/") or override.is_delete() or override.is_sweep_override():
        return None
    known, origin = loader.get_group_options(group), f"command line: {override.input_line}"
    if not known:
        return Problem("unknown-group", "there is no such config group", group, origin)
    if str(override.value()) in known:
        return None
    message = f"there is no option {str(override.value())!r} in this group"
    return Problem("unknown-option", message, group, origin, did_you_mean(str(override.value()), known))


def _deletion_problem(loader: ConfigLoader, override: Override) -> Problem | None:
    """`~NAME=VALUE` where NAME is an option file outside of all groups: Hydra raises ValueError."""
    key = override.key_or_group
    if not override.is_delete() or override.value() is None:
        return None
    if not any(source.is_config(key) for source in loader.get_sources()):
        return None
    origin = f"command line: {override.input_line}"
    return Problem("unknown-key", "is a file, and has no value that could be deleted", key, origin, f"write ~{key}")


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


def deletes_nothing(error: Exception, loader: ConfigLoader, lines: Sequence[str]) -> Problem | None:
    """An override that deletes a key that is not there, with the keys that are."""
    missing = re.match(r"Could not delete from config\. '([^']+)' does not exist", str(error))
    if missing is None:
        return None
    path = missing[1]
    tree = loader.load_configuration(CONFIG_NAME, [line for line in lines if not line.startswith("~")], RunMode.RUN)
    around: Any = tree
    *parents, name = path.split(".")
    for part in parents:
        inner = around._get_node(part) if OmegaConf.is_dict(around) and part in around else None
        if not OmegaConf.is_dict(inner):
            name = part
            break
        around = inner
    return Problem(
        "unknown-key",
        f"cannot be deleted: there is no {name!r}",
        path,
        f"command line: ~{path}",
        did_you_mean(name, (str(k) for k in around if k != "hydra")),
    )


def option_of_broken_plugin(group: str, option: str, origin: str = "") -> Problem | None:
    """The problem of choosing an option that only a broken plugin has; None when none has it."""
    for plugin in registry.plugins():
        if plugin.troubles and option in plugin.options.get(group, ()):
            trouble = plugin.troubles[0]
            message = f"{option!r} comes from {plugin.label}, which is broken: {trouble.cause}"
            return Problem("plugin-broken", message, group, origin, trouble.mend)
    return None


def circular(lines: Sequence[str]) -> TuneforgeError:
    """The error of defaults lists that Hydra follows without end."""
    chosen = [line.lstrip("+") for line in lines if not line.startswith(("++", "~")) and "." not in key_of(line)]
    return TuneforgeError(
        "broken-option-file",
        f"a defaults list of an option file leads back to its own file (chosen here: {' '.join(chosen) or 'nothing'})",
        path="defaults",
        fix="look at the defaults lists of the files that you added: no option can name itself, or one that names it",
    )
