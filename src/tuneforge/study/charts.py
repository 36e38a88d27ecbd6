"""The drawings of a sweep's page: what each is made of, in numbers for the template."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tuneforge.artifacts.curves import Axis, Chart, Line, Point
from tuneforge.artifacts.figures import number


@dataclass(frozen=True)
class Names(Axis):
    """An axis of things without order, one a place."""

    names: tuple[str, ...] = ()

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Every one of them."""
        return [(round(100 * self.share(i), 2), name) for i, name in enumerate(self.names)]


@dataclass(frozen=True)
class Track:
    """One trial through the parallel coordinates."""

    path: str
    """SVG path data in a box of 1000 x 1000 with y down."""
    share: float
    """0 for the best value, 1 for the worst."""
    is_best: bool
    label: str


@dataclass(frozen=True)
class Column:
    """One of their axes."""

    x: float
    """Percent of the width."""
    name: str
    ticks: list[tuple[float, str]]


def history(trials: Sequence[FrozenTrial], name: str, *, lower: bool) -> Chart | None:
    """The value of each trial in the order they were asked for, and the best so far."""
    done = [(t.number, t.value) for t in trials if t.state is TrialState.COMPLETE and t.value is not None]
    pruned = [(t.number, t.value) for t in trials if t.state is TrialState.PRUNED and t.value is not None]
    if not done:
        return None
    best = list(accumulate((v for _, v in done), min if lower else max))
    lines = [
        Line("best so far", "main", [(n, v) for (n, _), v in zip(done, best, strict=True)]),
        Line("complete", "main", _scattered(done), dots=True),
        Line("pruned, its last", "eval", _scattered(pruned), dots=True),
    ]
    return _chart("History", name, lines, Axis(0, max(1, trials[-1].number), whole=True), "trial")


def intermediate(trials: Sequence[FrozenTrial], name: str) -> Chart | None:
    """What the evaluations of each trial measured."""
    series: dict[bool, list[Point]] = {False: [], True: []}
    for trial in trials:
        points: list[Point] = [
            (n, v if math.isfinite(v) else None) for n, v in sorted(trial.intermediate_values.items())
        ]
        # A gap after each: no line joins two trials.
        series[trial.state is TrialState.PRUNED] += [*points, (points[-1][0], None)] if points else []
    lines = [Line("not pruned", "main", series[False], dots=True), Line("pruned", "eval", series[True], dots=True)]
    last = max((n for points in series.values() for n, _ in points), default=0)
    return _chart("Evaluations", name, lines, Axis(1, max(2, last), whole=True), "evaluation")


def slices(trials: Sequence[FrozenTrial], name: str) -> list[Chart]:
    """For each parameter, the value of the trials by its value."""
    done = [t for t in trials if t.state is TrialState.COMPLETE]
    found = []
    for key in dict.fromkeys(k for t in done for k in t.params):
        having = [t for t in done if key in t.params]
        axis = _axis(having, key)
        points = [(_place(axis, t.params[key]), _value(t)) for t in having]
        chart = _chart(key, name, [Line("complete", "main", _scattered(sorted(points)), dots=True)], axis, key)
        found += [chart] if chart else []
    return found


def parallel(trials: Sequence[FrozenTrial], name: str, *, lower: bool) -> tuple[list[Column], list[Track]]:
    """The complete trials through an axis a parameter, and last that of the value."""
    done = [t for t in trials if t.state is TrialState.COMPLETE]
    keys = list(dict.fromkeys(k for t in done for k in t.params))
    if len(done) < 2 or not keys:
        return [], []
    values = [_value(t) for t in done]
    axes = {key: _axis([t for t in done if key in t.params], key) for key in keys}
    axes[name] = _numbers(values)
    best = min(values) if lower else max(values)
    columns = [Column(round(100 * i / len(keys), 2), key, axis.ticks(4)) for i, (key, axis) in enumerate(axes.items())]
    tracks = []
    for trial, value in zip(done, values, strict=True):
        places = [axes[k].share(_place(axes[k], trial.params[k])) if k in trial.params else None for k in keys]
        places.append(axes[name].share(value))
        share = abs(value - best) / ((max(values) - min(values)) or 1)
        label = f"trial {trial.number}: {name} {number(value)}"
        tracks.append(Track(_polyline(places), round(share, 3), value == best, label))
    return columns, sorted(tracks, key=lambda t: -t.share)


def _polyline(places: Sequence[float | None]) -> str:
    """Through the axes that a trial has; one that it has not is passed over."""
    steps = len(places) - 1
    points = [f"{1000 * i / steps:.1f} {1000 * (1 - p):.1f}" for i, p in enumerate(places) if p is not None]
    return "M" + "L".join(points)


def _scattered(points: Sequence[tuple[float, float]]) -> list[Point]:
    """Points that no line joins."""
    return [p for x, y in points for p in ((x, y), (x, None))]


def _axis(trials: Sequence[FrozenTrial], key: str) -> Axis:
    distribution = trials[0].distributions[key]
    values = [t.params[key] for t in trials]
    if isinstance(distribution, FloatDistribution | IntDistribution):
        return _numbers(values, log=distribution.log)
    names = list(dict.fromkeys(values))
    names.sort(key=lambda v: (0, float(v), "") if _is_number(v) else (1, 0.0, str(v)))
    return Names(-0.5, len(names) - 0.5, names=tuple(number(v) for v in names))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(values: Sequence[float], *, log: bool = False) -> Axis:
    low, high = min(values), max(values)
    if log:
        return Axis(low / 1.1, high * 1.1, log=True)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Axis(low - room, high + room)


def _place(axis: Axis, value: Any) -> float:
    return axis.names.index(number(value)) if isinstance(axis, Names) else float(value)


def _value(trial: FrozenTrial) -> float:
    assert trial.values
    return float(trial.values[0])


def _chart(title: str, unit: str, lines: Sequence[Line], x: Axis, x_label: str) -> Chart | None:
    drawn = [line for line in lines if line.finite()]
    values = [v for line in drawn for v in line.finite()]
    if not values:
        return None
    return Chart(title, unit, drawn, x, _numbers(values), [], x_label=x_label)
