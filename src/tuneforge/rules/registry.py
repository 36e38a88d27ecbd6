"""The rules there are, and asking them all."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuneforge.errors import Problem
from tuneforge.schema import Config

Rule = Callable[[Config, Mapping[str, Any]], Problem | None]

RULES: list[Rule] = []


def rule(check: Rule) -> Rule:
    """Register a rule; its docstring is what a listing of the rules shows."""
    assert check.__doc__, f"rule {check.__name__} has no docstring"
    RULES.append(check)
    return check


def broken(config: Config, tree: Mapping[str, Any]) -> Iterator[Problem]:
    """The problems of all rules that this config breaks. `tree` also holds the options of `_target_`s."""
    for check in RULES:
        problem = check(config, tree)
        if problem is not None:
            yield problem


def listing() -> list[tuple[str, str]]:
    """Name and first line of the documentation of every rule."""
    return [(check.__name__, (check.__doc__ or "").splitlines()[0]) for check in RULES]
