"""Bounds on what a config may ask of the composition: lengths, levels, and how much interpolations may do.

A chain of `a: ${b}${b}` doubles at each step, and one of nodes or resolvers does so too. OmegaConf has no bound, and
neither has the parser of overrides: a thousand open brackets overflow the stack.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from omegaconf.base import Container
from omegaconf.errors import InterpolationResolutionError

RESOLVERS = ("times", "oc.env", "oc.decode", "now", "hydra")
"""The functions that an interpolation may call. `oc.create`, `oc.select` and `oc.dict.*` make nodes out of text."""
MAX_TEXT = 10_000
"""Characters of an override, and of what an interpolation makes."""
MAX_EXPRESSION = 1_000
"""Characters of a text with an interpolation. The longest of ours has 100."""
MAX_LEVELS = 20
"""Brackets inside of brackets in an override, parts of a key, and interpolations that read one another."""
MAX_EVALUATIONS = 1_000
"""Interpolations evaluated in one composition. The default config has 20."""
MAX_VALUES = 5_000
"""Values of a resolved config. The default one has 200."""

_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""


def too_complex(text: str) -> str:
    """Why an override is not even parsed; "" where it may be."""
    if len(text) > MAX_TEXT:
        return f"is longer than {MAX_TEXT:,} characters"
    if text.partition("=")[0].count(".") >= MAX_LEVELS:
        return f"has a key of more than {MAX_LEVELS} parts"
    if _levels(text) > MAX_LEVELS:
        return f"has brackets in more than {MAX_LEVELS} levels"
    return "" if "${" not in text else too_complex_expression(text)


def too_complex_expression(text: str) -> str:
    """Why a text with interpolations is not parsed; "" where it may be."""
    if len(text) > MAX_EXPRESSION:
        return f"has interpolations in a text of more than {MAX_EXPRESSION:,} characters"
    if text.count("${") > MAX_LEVELS:
        return f"has more than {MAX_LEVELS} interpolations"
    return ""


def complex_texts(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Path of each text in a tree whose interpolations are not parsed, and why."""
    if isinstance(tree, str):
        why = too_complex_expression(tree) if "${" in tree else ""
        if why:
            yield path, why
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from complex_texts(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list):
        for value in tree:
            yield from complex_texts(value, path)


def _levels(text: str) -> int:
    """How deep brackets stand in one another, those in quotes left out."""
    level = deepest = 0
    quote = ""
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        else:
            level += (character in _OPEN) - (character in _CLOSE)
            deepest = max(deepest, level)
    return deepest


@dataclass
class _Budget:
    """What the interpolations of one composition have done so far."""

    evaluations: int = 0
    levels: int = 0


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


@contextmanager
def bounded_interpolations() -> Iterator[None]:
    """Interpolations evaluated inside share one budget."""
    before = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(before)


def exhausted() -> bool:
    """Whether the budget is used up, so that nothing else can be worked out."""
    budget = _budget.get()
    return budget is not None and budget.evaluations > MAX_EVALUATIONS


_evaluate, _call = Container.resolve_parse_tree, Container._evaluate_custom_resolver


def _resolve_parse_tree(container: Container, *args: Any, **kwargs: Any) -> Any:
    """OmegaConf's evaluation of one interpolation, within the budget."""
    budget = _budget.get()
    if budget is None:
        return _evaluate(container, *args, **kwargs)
    budget.evaluations += 1
    if budget.evaluations > MAX_EVALUATIONS:
        raise InterpolationResolutionError(f"there are more than {MAX_EVALUATIONS:,} interpolations")
    if budget.levels >= MAX_LEVELS:
        raise InterpolationResolutionError(f"interpolations read one another in more than {MAX_LEVELS} steps")
    budget.levels += 1
    try:
        found = _evaluate(container, *args, **kwargs)
    finally:
        budget.levels -= 1
    if isinstance(found, str) and len(found) > MAX_TEXT:
        raise InterpolationResolutionError(f"interpolations make a text of more than {MAX_TEXT:,} characters")
    return found


def _evaluate_custom_resolver(container: Container, **given: Any) -> Any:
    """OmegaConf's call of a function in an interpolation, for those of `RESOLVERS`."""
    if _budget.get() is not None:
        name = given["inter_type"]
        if name not in RESOLVERS:
            message = f"there is no function {name!r} for interpolations, known here: {', '.join(RESOLVERS)}"
            raise InterpolationResolutionError(message)
        why = next((w for w in (too_complex(a) for a in given["inter_args"] if isinstance(a, str)) if w), "")
        if why:
            raise InterpolationResolutionError(f"what {name} is given {why}")
    return _call(container, **given)


for _method in (_resolve_parse_tree, _evaluate_custom_resolver):
    setattr(Container, _method.__name__.replace("_resolve_parse", "resolve_parse"), _method)
