"""The report's line charts: which there are, their scales and marks, and the numbers to draw."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tuneforge.artifacts.figures import mean, number, scientific

MAX_POINTS = 1000
"""Vertices of one drawn line: about one a pixel of a wide screen."""

FEW = 20
"""Up to so many values, each gets a dot, and an average says nothing that the values do not."""

CHARTED = {
    "step",
    "epoch",
    "train/loss",
    "eval/loss",
    "eval/perplexity",
    "train/lr",
    "train/grad_norm",
    "train/tokens_per_s",
}
"""Keys with a chart, or a place, of their own."""

Point = tuple[float, float | None]
"""Optimizer step and value; None where the value is not finite."""


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    label: str
    css: str
    """Class of the stroke: raw, main, eval or limit."""
    points: list[Point]
    dots: bool = False
    """A dot at every value, for series of few values."""

    def finite(self) -> list[float]:
        """The values that can be drawn."""
        return [v for _, v in self.points if v is not None]


@dataclass(frozen=True)
class Axis:
    """A range of values, and where a value stands in it."""

    low: float
    high: float
    log: bool = False
    whole: bool = False
    """Its values are numbers of things: no tick lies between two of them."""

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high end."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """(percent of the axis, label) of round values."""
        values = _decades(self.low, self.high) if self.log else []
        if len(values) < 2:
            values = _round_values(self.low, self.high, count, self.whole)
        labels = [number(v) if self.log else _tick(v, values) for v in values]
        return [(round(100 * self.share(v), 2), label) for v, label in zip(values, labels, strict=True)]


@dataclass(frozen=True)
class Mark:
    """A point of a chart with words beside it."""

    x: float
    y: float
    text: str
    css: str
    anchor: str = "start"


@dataclass(frozen=True)
class Chart:
    """Series over optimizer steps, with the axes they are drawn in."""

    title: str
    unit: str
    lines: list[Line]
    x: Axis
    y: Axis
    gaps: list[float]
    """Steps at which a value is not finite."""
    marks: list[Mark] = field(default_factory=list)
    x_label: str = "optimizer step"

    def paths(self, line: Line) -> tuple[str, str]:
        """SVG path data of the strokes and of the dots, in a box of 1000 x 1000 with y down."""
        strokes, dots, run = [], [], []
        for step, value in [*downsample(line.points), (0.0, None)]:
            if value is not None:
                run.append(f"{1000 * self.x.share(step):.1f} {1000 * (1 - self.y.share(value)):.1f}")
                continue
            # A value between two gaps has no neighbour to be joined to and would not be seen without its dot.
            strokes += ["M" + "L".join(run)] if len(run) > 1 else []
            dots += [f"M{p}h0" for p in run] if line.dots or len(run) == 1 else []
            run = []
        return "".join(strokes), "".join(dots)

    def gap_path(self) -> str:
        """Short strokes at the foot of the chart where a value is missing, one a pixel at most."""
        places = dict.fromkeys(round(1000 * self.x.share(step)) for step in self.gaps)
        return "".join(f"M{x} 1000v-40" for x in places)

    def readings(self) -> dict[str, Any]:
        """What the page's script shows under the pointer."""
        lines = [{"label": li.label, "css": li.css, "points": _short(downsample(li.points))} for li in self.lines]
        return {"last": self.x.high, "lines": lines}

    def summary(self) -> str:
        """The chart in words, for those who do not see it."""
        ends = [(li.label, li.finite()) for li in self.lines if li.finite()]
        return f"{self.title}: " + "; ".join(f"{name} from {number(v[0])} to {number(v[-1])}" for name, v in ends)


def downsample(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` values: the lowest and the highest of each bucket, so that no spike is lost; gaps stay gaps."""
    if len(points) <= limit:
        return list(points)
    size = math.ceil(len(points) / (limit // 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        values = [(v, i) for i, (_, v) in enumerate(bucket) if v is not None]
        chosen = {min(values)[1], max(values)[1]} if values else set()
        chosen |= {next(i for i, (_, v) in enumerate(bucket) if v is None)} if len(values) < len(bucket) else set()
        kept += [bucket[i] for i in sorted(chosen)]
    return kept


def _short(points: Sequence[Point]) -> list[Point]:
    """The points to six digits: more would double the page and be read by nobody."""
    return [(step, None if value is None else float(f"{value:.6g}")) for step, value in points]


def moving_average(points: Sequence[Point], span: int) -> list[Point]:
    """Exponential moving average without the pull of a start at 0; passes over gaps, which stay gaps."""
    keep, total, weight = 1 - 2 / (span + 1), 0.0, 0.0
    smooth: list[Point] = []
    for step, value in points:
        if value is not None:
            total, weight = keep * total + value, keep * weight + 1
        smooth.append((step, total / weight if value is not None else None))
    return smooth


def charts(metrics: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> list[Chart]:
    """Loss, learning rate, gradient norm and speed: what every run logs."""
    x = _steps(metrics)
    classifies = settings.get("task_recipe.objective") == "classification"
    charts = [
        _loss_chart(metrics, settings, x),
        _single(metrics, "train/lr", "Learning rate", zero=True),
        _norm_chart(metrics, mean([settings.get("trainer.gradient_clip_val")]) or 0, x),
        _single(metrics, "train/tokens_per_s", "Speed", "tokens/s" if classifies else "supervised tokens/s", zero=True),
    ]
    return [chart for chart in charts if chart]


def more_charts(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[Chart], dict[str, float]]:
    """Whatever else was logged, guards' measures mostly: a chart of what changed, and the value of what did not."""
    keys = dict.fromkeys(key for m in metrics for key in m if key not in CHARTED)
    charts, still = [], {}
    for key in sorted(keys):
        values = {value for _, value in _series(metrics, key)}
        (value, *others) = values
        if others or value is None:
            charts.append(_single(metrics, key, key))
        else:
            still[key] = value
    return [chart for chart in charts if chart], still


def _single(
    metrics: Sequence[Mapping[str, Any]], key: str, title: str, unit: str = "", *, zero: bool = False
) -> Chart | None:
    points = _series(metrics, key)
    line = Line(title.lower(), "main", points, dots=len(points) <= FEW)
    return _chart(title, unit, [line], _steps(metrics), zero=zero)


def _steps(metrics: Sequence[Mapping[str, Any]]) -> Axis:
    return Axis(0, max([1, *(m["step"] for m in metrics)]), whole=True)


def range_chart(rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], suggested: float) -> Chart:
    """Loss over the learning rate of a range test; what diverges leaves the chart at the top."""
    start = max(smoothed[:3])
    top = min(smoothed) + 1.25 * (start - min(smoothed))
    lines = [
        Line(name, css, [(rate, min(loss, top)) for rate, loss in zip(rates, values, strict=True)])
        for name, css, values in (("loss", "raw", losses), ("smoothed", "main", smoothed))
    ]
    low = min(*smoothed, *losses)
    chart = Chart(
        "Train loss",
        "nats per supervised token",
        lines,
        Axis(rates[0], rates[-1], log=True),
        Axis(low - 0.05 * (top - low), top),
        gaps=[],
        x_label="learning rate",
    )
    nearest = min(range(len(rates)), key=lambda i: abs(math.log(rates[i] / suggested)))
    chart.marks.append(_mark(chart, suggested, min(smoothed[nearest], top), f"suggested {number(suggested)}", "best"))
    return chart


def _loss_chart(metrics: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], x: Axis) -> Chart | None:
    train, evals = _series(metrics, "train/loss"), _series(metrics, "eval/loss")
    lines = [Line("train", "main", train, dots=True)]
    if len(train) > FEW:
        span = min(100, len(train) // 20 + 5)
        average = Line(f"train, exponential moving average (span {span})", "main", moving_average(train, span))
        lines = [Line("train", "raw", train), average]
    per = {"sft": "supervised token", "pretrain": "supervised token", "classification": "text"}
    objective = str(settings.get("task_recipe.objective", ""))
    unit = f"nats per {per[objective]}" if objective in per else ""
    chart = _chart("Loss", unit, [*lines, Line("eval", "eval", evals, dots=True)], x)
    if chart:
        chart.marks.extend(_eval_marks(chart, evals))
    return chart


def _norm_chart(metrics: Sequence[Mapping[str, Any]], limit: float, x: Axis) -> Chart | None:
    points = _series(metrics, "train/grad_norm")
    norm = Line("norm", "main", points, dots=len(points) <= FEW)
    # A limit far above every norm never acts, and drawing it would press the norms flat.
    if limit and limit < 2 * max(norm.finite(), default=0.0):
        clip = Line(f"clipped to {limit:g}", "limit", [(0, limit), (x.high, limit)])
        return _chart("Gradient norm", "before clipping", [norm, clip], x, zero=True)
    unit = f"clipped at {limit:g}, off the chart" if limit else "not clipped"
    return _chart("Gradient norm", unit, [norm], x, zero=True)


def _series(metrics: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    return [(m["step"], mean([m[key]])) for m in metrics if key in m]


def _chart(title: str, unit: str, lines: Sequence[Line], x: Axis, *, zero: bool = False) -> Chart | None:
    """A chart of the series that were logged; None when none was."""
    gaps = sorted({step for line in lines for step, value in line.points if value is None})
    drawn = [line for line in lines if line.points]
    values = [v for line in drawn for v in line.finite()]
    return Chart(title, unit, drawn, x, _y_axis(values or [0.0, 1.0], zero=zero), gaps) if drawn else None


def _y_axis(values: Sequence[float], *, zero: bool) -> Axis:
    low, high = min(values), max(values)
    # One spike far above the rest would press all else flat against the axis.
    if low > 0 and high > 30 * statistics.median(values):
        return Axis(low / 1.2, high * 1.2, log=True)
    low = min(0.0, low) if zero else low
    # Ticks of a range that is only rounding noise could not be told apart.
    is_flat = high - low <= 1e-6 * max(abs(low), abs(high))
    room = (0.1 * abs(high) or 1.0) if is_flat else 0.06 * (high - low)
    return Axis(low if zero and low == 0 else low - room, high + room)


def _eval_marks(chart: Chart, evals: Sequence[Point]) -> list[Mark]:
    """The untouched base, and the lowest eval loss, whose weights the run keeps."""
    known = [(step, value) for step, value in evals if value is not None]
    marks = []
    if known and known[0][0] == 0:
        marks.append(_mark(chart, *known[0], f"untouched base {known[0][1]:.4f}", "base"))
    if len(known) > 1 and (best := min(known, key=lambda p: p[1]))[0] > 0:
        marks.append(_mark(chart, *best, f"lowest {best[1]:.4f} at step {best[0]:,}", "best"))
    return marks


def _mark(chart: Chart, step: float, value: float, text: str, css: str) -> Mark:
    x, y = round(100 * chart.x.share(step), 2), round(100 * (1 - chart.y.share(value)), 2)
    return Mark(x, y, text, css, "end" if x > 50 else "start")


def _round_values(low: float, high: float, count: int, whole: bool) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within the range, about `count` of them and never one alone."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    spacings = [power * m for m in (0.5, 1, 2, 5, 10)]
    wanted = next(i for i, spacing in enumerate(spacings) if spacing >= 0.75 * rough)

    def values(spacing: float) -> list[float]:
        spacing = max(1.0, spacing) if whole else spacing
        return [i * spacing for i in range(math.ceil(low / spacing), math.floor(high / spacing + 1e-9) + 1)]

    found = values(spacings[wanted])
    return found if len(found) > 1 else values(spacings[wanted - 1])


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
    return [10.0**e for e in range(first, last + 1, max(1, math.ceil((last - first + 1) / 6)))]


def _tick(value: float, values: Sequence[float]) -> str:
    if value and not 1e-3 <= max(map(abs, values)) < 1e6:
        return scientific(value)
    spacing = min((b - a for a, b in pairwise(values)), default=1.0)
    return f"{value:,.{max(0, -math.floor(math.log10(spacing) + 1e-9))}f}" if value else "0"
