"""A range test for the learning rate: it grows exponentially over a few dozen steps until the loss diverges.

After L. Smith (arXiv 1506.01186): where the loss falls fastest, the rate is high enough and not yet too high.
"""

import io
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from tuneforge.artifacts.curves import range_chart
from tuneforge.artifacts.folder import write_bytes, write_json, write_text
from tuneforge.artifacts.report import template
from tuneforge.build import Loaders, build_trainer, prepare
from tuneforge.compose import Composed
from tuneforge.context import Context
from tuneforge.data.batches import StepSampler
from tuneforge.data.source import Source
from tuneforge.errors import RefusedError
from tuneforge.finish import measure
from tuneforge.resume import RANGE_TEST, Place
from tuneforge.sharding import clip_gradients
from tuneforge.targets import make

SMOOTHING = 0.8
"""Weight of the past in the smoothed loss."""
DIVERGED = 2.0
"""The test stops when the smoothed loss is this many times its lowest."""


@dataclass(frozen=True)
class Found:
    """What the test saw, and what it suggests."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggested: float
    """Where the smoothed loss falls fastest with the logarithm of the rate, or a tenth of where it is lowest."""
    diverged: bool


def find(composed: Composed, rows: Source, place: Place, command: Callable[[float], str]) -> Found:
    """Run the test and write `lr_find.json`, `lr_find.png` and `report.html` into the run folder; no weights are saved.

    `command` gives the line that runs with a rate.

    Raises:
        RefusedError: the loss never fell.
    """
    context = prepare(composed, rows, place.folder)
    module = make("task_recipe", composed.tree["task_recipe"], pl.LightningModule, context)
    trainer, loaders = build_trainer(context, 0), Loaders(context)
    measure(trainer, module, loaders)
    rates, losses = _sweep(context, trainer, module, loaders)
    smooth = smoothed(losses)
    found = Found(rates, losses, smooth, suggestion(rates, smooth), len(losses) < context.config.lr_find.steps)
    write_json(place.folder.root / RANGE_TEST, asdict(found))
    draw(found, place.folder.root / "lr_find.png")
    page = {
        "low": found.rates[0], "high": found.rates[-1], "steps": len(found.rates), "diverged": found.diverged,
        "suggested": found.suggested, "present": composed.config.optim.lr, "command": command(found.suggested),
        "curve": range_chart(found.rates, found.losses, found.smoothed, found.suggested),
    }  # fmt: skip
    write_text(place.folder.report, template("lr_find.html.j2").render(page))
    return found


def _sweep(context: Context, trainer: pl.Trainer, module: Any, loaders: Loaders) -> tuple[list[float], list[float]]:
    settings = context.config.lr_find
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # Groups with rates of their own keep their ratio to the run's rate.
    shares = [group.get("initial_lr", group["lr"]) / context.config.optim.lr for group in optimizer.param_groups]
    batches = iter(_batches(context, loaders))
    rates, losses = [], []
    module.train()
    for step in range(settings.steps):
        rate = settings.lowest * (settings.highest / settings.lowest) ** (step / max(1, settings.steps - 1))
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        loss = _step(context, trainer, module, [next(batches) for _ in range(context.settled.accumulate)])
        if context.config.trainer.gradient_clip_val:
            clip_gradients(parameters, context.config.trainer.gradient_clip_val)
        optimizer.step()
        optimizer.zero_grad()
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        smooth = smoothed(losses)
        if smooth[-1] > DIVERGED * min(smooth):
            break
    return rates, losses


def _step(context: Context, trainer: pl.Trainer, module: Any, batches: list[Any]) -> float:
    """Gradients of one optimizer step; returns its loss a supervised token."""
    total = 0.0
    for batch in batches:
        moved = {k: v.to(module.device) for k, v in batch.items()}
        with trainer.precision_plugin.forward_context():
            loss = module.loss_sum(moved) / moved["num_labels"]
        loss.backward()
        total += float(loss.detach())
    return total


def _batches(context: Context, loaders: Loaders) -> Any:
    sampler = StepSampler(
        context.train_rows.num_labels,
        rows_per_step=context.settled.rows_per_step,
        accumulate=context.settled.accumulate,
        world_size=1,
        rank=0,
        seed=context.config.seed,
        num_steps=context.config.lr_find.steps,
    )
    return (loaders.collate([context.train_rows[i] for i in indices]) for indices in sampler)


def smoothed(losses: list[float]) -> list[float]:
    """Exponential moving average, corrected for its start at 0."""
    average, found = 0.0, []
    for i, loss in enumerate(losses, 1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        found.append(average / (1 - SMOOTHING**i))
    return found


def suggestion(rates: list[float], smooth: list[float]) -> float:
    """The rate at the steepest fall, in losses a decade of the rate, and at most a tenth of that of the lowest loss.

    The tenth is for runs longer than the test: a rate next to where the loss turns up is too high to stay at.

    Raises:
        RefusedError: there is no fall to speak of.
    """
    lowest = smooth.index(min(smooth)) if smooth else 0
    if lowest < 2 or smooth[lowest] > 0.99 * smooth[0]:
        raise RefusedError(
            "no-learning-rate",
            "the loss fell at no rate of the range",
            path="lr_find",
            fix="widen lr_find.lowest and lr_find.highest, or look for the fault: sanity.overfit_one_batch=true",
        )
    # The first point has seen one batch alone, and the average lags: slopes over three points.
    slopes = [(smooth[i + 1] - smooth[i - 1]) / math.log10(rates[i + 1] / rates[i - 1]) for i in range(1, lowest)]
    steepest = rates[1 + slopes.index(min(slopes))]
    return float(f"{min(steepest, rates[lowest] / 10):.2g}")


def draw(found: Found, path: Path) -> bool:
    """The plot; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(found.rates, found.losses, color="0.75", linewidth=1, label="loss")
    axes.plot(found.rates, found.smoothed, linewidth=2, label="smoothed")
    axes.axvline(found.suggested, linestyle="--", color="tab:red", label=f"suggested {found.suggested:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="train loss", title="Learning-rate range test")
    axes.set_ylim(0.95 * min(found.smoothed), 1.1 * max(found.smoothed[0], *found.smoothed[:3]))
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120, format="png")
    write_bytes(path, drawn.getvalue())
    return True
