"""What is wrong with a sweep, found before its first trial."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser

from tuneforge.compose import Composed, compose
from tuneforge.errors import Problem, TuneforgeError, did_you_mean
from tuneforge.front import front, groups
from tuneforge.rules.guards import MEASURES, measures
from tuneforge.samplers import NONE, is_grid, make_pruner, make_sampler
from tuneforge.schema.check import check
from tuneforge.schema.sweep import Sweep
from tuneforge.study.space import MAX_GRID, Space, override

Extend = Callable[[Any, optuna.trial.Trial], None]
_NEVER = ("unknown-key", "unknown-group", "unknown-option", "unreadable-override", "wrong-value", "required-key")
"""Codes of what no other value of the same keys would mend."""


def check_search(settings: Sweep, space: Space, seed: int) -> None:
    """Objectives, sampler and pruner against each other and the space.

    Raises:
        TuneforgeError: with every problem of them.
    """
    problems = [*_objective_problems(settings), *_space_problems(settings, space)]
    if problems:
        raise TuneforgeError.of(problems)
    if not is_grid(settings.sampler, listed=not space.continuous):
        make_sampler(settings.sampler, seed)
    make_pruner(settings.pruner)


def _objective_problems(settings: Sweep) -> Iterator[Problem]:
    objectives, directions = settings.objectives, settings.directions
    path = "hydra.sweeper.direction"
    if len(objectives) != len(directions):
        message = f"{len(objectives)} objectives ({', '.join(objectives)}) have {len(directions)} directions"
        yield Problem("one-direction-each", message, path, fix=f"{path}=[{','.join(['minimize'] * len(objectives))}]")
    for name, direction in zip(objectives, directions, strict=False):
        wanted = {"min": "minimize", "max": "maximize"}.get(MEASURES.get(name, ""), direction)
        if direction != wanted:
            message = f"is {direction}, and {name} is better the other way"
            yield Problem("measure-upside-down", message, path, fix=f"set it to {wanted}")
    if len(objectives) > 1 and settings.pruner["_target_"] != NONE:
        message = "a trial of several objectives cannot be compared on its way, and no pruner of Optuna does"
        yield Problem("pruner-needs-one-objective", message, "hydra/sweeper/pruner", fix="hydra/sweeper/pruner=none")


def _space_problems(settings: Sweep, space: Space) -> Iterator[Problem]:
    if not space.swept and not settings.custom_search_space:
        fix = "give a key several values (optim.lr=1e-4,2e-4), a range, or a sweep (+sweep=lora_quick)"
        yield Problem("nothing-swept", "--multirun has nothing to vary", fix=fix)
    if not is_grid(settings.sampler, listed=not space.continuous):
        return
    for key in space.continuous:
        message = f"is an interval ({space.written[key]}), and a grid needs values that can be listed"
        fix = f"write {key}=a,b,c or range(low, high, step), or choose hydra/sweeper/sampler=tpe"
        yield Problem("grid-needs-values", message, key, fix=fix)
    if settings.custom_search_space:
        message = "suggests values while a trial is made up, and a grid is made up before"
        fix = "choose hydra/sweeper/sampler=tpe"
        yield Problem("grid-needs-values", message, "hydra.sweeper.custom_search_space", fix=fix)
    if not space.continuous and space.size > MAX_GRID:
        message = f"has {space.size:,.0f} combinations, and each would be a run"
        fix = "list fewer values, or choose hydra/sweeper/sampler=tpe"
        yield Problem("grid-too-large", message, "hydra.sweeper.params", fix=fix)


def check_configs(
    settings: Sweep,
    space: Space,
    shared: Sequence[str],
    config_dirs: Sequence[Path],
    *,
    extend: Extend | None,
    config: Any,
) -> Composed:
    """Try the ends of every range against the schema, and compose every branch of a custom space.

    Returns the config that trials start from. What rules refuse is left to the trial: it costs no training there.

    Raises:
        TuneforgeError: with the values that no trial could have, or the overrides that no trial could be composed with.
    """
    with front(config_dirs) as loader:
        known = groups(loader)
    base = _base(space, shared, config_dirs, known)
    problems = [*_option_problems(space, known)]
    for key in space.swept:
        if key not in known:
            problems += _value_problems(base.tree, space, key)
    if problems:
        raise TuneforgeError.of(problems)
    for point in _branches(space, extend, config) if extend else ():
        try:
            compose([*shared, *point], config_dirs)
        except TuneforgeError as error:
            if any(p.code in _NEVER for p in error.problems):
                raise
    _check_measured(settings, base)
    return base


def _base(space: Space, shared: Sequence[str], config_dirs: Sequence[Path], known: Mapping[str, Any]) -> Composed:
    """The first point; where it cannot be, that of the options alone, in which no value is in the way."""
    chosen = [line for key, line in zip(space.swept, space.first(), strict=True) if key in known]
    try:
        return compose([*shared, *space.first()], config_dirs)
    except TuneforgeError as error:
        if len(chosen) == len(space.swept):
            raise
        try:
            return compose([*shared, *chosen], config_dirs)
        except TuneforgeError:
            raise error from None


def _option_problems(space: Space, known: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    """Options of groups that are not there."""
    for key in space.swept:
        for option in space.ends(key) if key in known else []:
            if str(option) not in known[key]:
                message = f"there is no option {str(option)!r} in this group"
                yield Problem("unknown-option", message, key, space.written[key], did_you_mean(str(option), known[key]))


def _value_problems(tree: Mapping[str, Any], space: Space, key: str) -> list[Problem]:
    """What the schema says of the ends of a range, or of each choice; told once, with what was written."""
    for value in space.ends(key):
        changed: Any = copy.deepcopy(dict(tree))
        *parents, last = key.split(".")
        node = changed
        for depth, parent in enumerate(parents, 1):
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                message = f"has no keys in it: {'.'.join(parents[:depth])} is a value"
                return [Problem("unknown-key", message, key, space.written[key], f"sweep {'.'.join(parents[:depth])}")]
        node[last] = OverridesParser.create().parse_override(override(key, value)).value()
        around = {".".join(parents[: i + 1]) for i in range(len(parents))}
        found = [p for p in check(changed).problems if p.path in (key, *around) or p.path.startswith(f"{key}.")]
        if found:
            return [dataclasses.replace(p, origin=space.written[key]) for p in found]
    return []


def _branches(space: Space, extend: Extend, config: Any) -> Iterator[list[str]]:
    """One point for each way in which the values of the listed keys make a custom space go on."""
    seen: set[tuple[str, ...]] = set()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    listed = [key for key in space.swept if isinstance(space.swept[key], optuna.distributions.CategoricalDistribution)]
    for key, choice in [(k, c) for k in listed for c in space.ends(k)] or [("", None)]:
        study.enqueue_trial({key: choice} if key else {})
        trial = study.ask(fixed_distributions=space.swept)
        extend(config, trial)
        point = [override(k, v) for k, v in trial.params.items()]
        shape = (*sorted(trial.params), f"{key}={choice}")
        if shape not in seen:
            seen.add(shape)
            yield point


def _check_measured(settings: Sweep, composed: Composed) -> None:
    """Every objective is something that the run measures, as far as the config tells."""
    known = measures(composed.config, composed.tree)
    for name in settings.objectives if known is not None else []:
        if name not in (known or ()) and name.partition("/")[0] not in composed.tree["callbacks"]:
            objective = composed.config.task_recipe.objective
            message = f"is {name}, which task_recipe.objective={objective} does not measure"
            fix = did_you_mean(name, known or ())
            raise TuneforgeError("unknown-measure", message, path="hydra.sweeper.objective", fix=fix)
