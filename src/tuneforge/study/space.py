"""What a sweep varies and what it keeps: params of its file and overrides as typed, as Optuna's distributions."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_optuna_distribution_from_override,
)
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tuneforge.artifacts.figures import plain
from tuneforge.errors import TuneforgeError
from tuneforge.hydra_node import is_hydra, refused
from tuneforge.masking import masked
from tuneforge.overrides import parse

MAX_GRID = 10_000
"""Points of a grid: more is a slip, and each is a run."""
MAX_LISTED = 100_000
"""Values of a range that is listed value by value. One of whole numbers is not, and may have more."""


@dataclass(frozen=True)
class Space:
    """A search space, and the overrides that all its trials share."""

    swept: dict[str, BaseDistribution]
    """Key or group -> its distribution; values are texts, or numbers, of the override grammar."""
    written: dict[str, str]
    """The same keys -> the override that says so."""
    fixed: tuple[str, ...]
    """As typed."""

    @classmethod
    def read(cls, params: Mapping[str, Any], typed: Sequence[str]) -> "Space":
        """Of params and overrides; what was typed wins, be it another space or one value.

        Raises:
            TuneforgeError: a param that is no override, or a sweep that Optuna has no distribution for.
        """
        swept: dict[str, BaseDistribution] = {}
        written: dict[str, str] = {}
        fixed: dict[str, str] = {}
        listed = [f"{key}={value}" for key, value in params.items()]
        for text in [*listed, *typed]:
            override = _parsed(text)
            if is_hydra(override):
                if text in listed:
                    raise TuneforgeError.of([refused(override.key_or_group, text)])
                continue
            key = override.get_key_element().lstrip("+")
            for before in (swept, written, fixed):
                before.pop(key, None)
            line = text.removeprefix("++")
            if override.is_sweep_override():
                swept[key], written[key] = _distribution(override, line), line
            else:
                fixed[key if not override.is_delete() else line] = line
        return cls(swept, written, tuple(fixed.values()))

    @property
    def continuous(self) -> list[str]:
        """Keys whose values cannot be listed."""
        return [key for key, d in self.swept.items() if isinstance(d, FloatDistribution) and d.step is None]

    @property
    def size(self) -> float:
        """Points of the space; infinite where a key is continuous."""
        return math.inf if self.continuous else math.prod(map(_count, self.swept.values()))

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every point, the last key varying fastest."""
        for point in itertools.product(*map(_choices, self.swept.values())):
            yield dict(zip(self.swept, point, strict=True))

    def ends(self, key: str) -> list[Any]:
        """The lowest and the highest value of a key, or all its choices."""
        distribution = self.swept[key]
        if isinstance(distribution, CategoricalDistribution):
            return list(distribution.choices)
        assert hasattr(distribution, "low")
        assert hasattr(distribution, "high")
        return [distribution.low, distribution.high]

    def first(self) -> list[str]:
        """Overrides of the point of every key's first value."""
        return [override(key, self.ends(key)[0]) for key in self.swept]


def override(key: str, value: Any) -> str:
    """A trial's value as an override; texts are in the grammar already."""
    return f"{key}={plain(value)}"


def _parsed(text: str) -> Override:
    try:
        return parse(text)
    except ValueError as error:
        key = text.partition("=")[0]
        message = f"cannot be read: {error}"
        fix = "write it as on the command line: interval(low, high), tag(log, interval(..)), range(..) or choice(a,b)"
        raise TuneforgeError("unreadable-space", message, path=f"hydra.sweeper.params.{key}", fix=fix) from error


def _check_range(override: Override) -> None:
    """Refuse ends that are not finite, and a range that would be listed without end: Optuna lists most of them."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        if not all(math.isfinite(float(number or 0)) for number in (value.start, value.end)):
            raise ValueError("its ends must be finite numbers")
        return
    if not isinstance(value, RangeSweep):
        return
    given = (value.start, value.stop, value.step)
    start, stop, step = (float(number or 0) for number in given)
    if not all(map(math.isfinite, (start, stop, step))):
        raise ValueError("its ends and its step must be finite numbers")
    whole = all(isinstance(number, int) for number in given)
    listed = value.shuffle or value.transformers or not whole
    if step and listed and (stop - start) / step > MAX_LISTED:
        raise ValueError(f"it has more than {MAX_LISTED:,} values; interval({value.start}, {value.stop}) has no steps")


def _distribution(override: Override, text: str) -> BaseDistribution:
    try:
        _check_range(override)
        found = create_optuna_distribution_from_override(override)
    except (ValueError, AssertionError, NotImplementedError, ArithmeticError) as error:
        message = f"Optuna cannot search {text}: {str(error).splitlines()[0] if str(error) else 'no such values'}"
        fix = "write interval(low, high) with low below high, tag(log, interval(..)), range(..) or choice(a,b)"
        raise TuneforgeError("unreadable-space", message, path=override.key_or_group, fix=fix) from error
    assert isinstance(found, BaseDistribution)
    return found


def _count(distribution: BaseDistribution) -> int:
    """How many values there are, without listing those of a range."""
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    return len(_choices(distribution))


def _choices(distribution: BaseDistribution) -> Sequence[Any]:
    choices: Sequence[Any] = OptunaSweeperImpl._to_grid_sampler_choices(distribution)
    return choices


def refuse_secrets(swept: Mapping[str, BaseDistribution]) -> None:
    """A study keeps the values that it chooses from, in its database.

    Raises:
        TuneforgeError: one of them is a secret.
    """
    for key, distribution in swept.items():
        choices = distribution.choices if isinstance(distribution, CategoricalDistribution) else ()
        if any(masked(str(value), key) != str(value) for value in choices):
            raise TuneforgeError(
                "secret-in-sweep",
                "is swept over secrets, and the study's database would keep them",
                path=key,
                fix=f"name environment variables, in single quotes: {key}='${{oc.env:FIRST}}','${{oc.env:SECOND}}'",
            )
