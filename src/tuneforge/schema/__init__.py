"""The typed shape of a composed config: plain dataclasses, checked by one pass over the whole tree."""

from dataclasses import dataclass, field

from tuneforge.schema.data import Data
from tuneforge.schema.hardware import Hardware
from tuneforge.schema.method import Method
from tuneforge.schema.model import Model
from tuneforge.schema.training import (
    Batch,
    Callback,
    Logger,
    LrFind,
    Optim,
    Regularise,
    Samples,
    Sanity,
    Scheduler,
    Strategy,
    TaskRecipe,
    Trainer,
)
from tuneforge.schema.types import Count, LocalPath


@dataclass(frozen=True, kw_only=True)
class Config:
    """A run: one node for each config group, and the run-wide settings."""

    model: Model
    """Which weights."""
    data: Data
    """Which rows."""
    method: Method
    """What changes in the weights."""
    hardware: Hardware
    """What the machine is."""
    strategy: Strategy
    """How work is spread."""
    optim: Optim
    """The optimizer."""
    scheduler: Scheduler
    """The learning rate over time."""
    task_recipe: TaskRecipe
    """What is learnt."""
    callbacks: dict[str, Callback] = field(default_factory=dict)
    """Name -> Lightning callback."""
    logger: dict[str, Logger] = field(default_factory=dict)
    """Name -> Lightning logger."""
    batch: Batch = field(default_factory=Batch)
    """How much one optimizer step sees."""
    trainer: Trainer = field(default_factory=Trainer)
    """The loop."""
    samples: Samples = field(default_factory=Samples)
    """Answers before and after."""
    regularise: Regularise = field(default_factory=Regularise)
    """What holds the model near its base."""
    sanity: Sanity = field(default_factory=Sanity)
    """Checks before the run."""
    lr_find: LrFind = field(default_factory=LrFind)
    """The learning-rate range test."""
    seed: Count = 17
    """Seeds weights, splits, row order and dropout."""
    resume: LocalPath | None = None
    """auto: go on with the newest unfinished run of this config; or a run folder or checkpoint."""
    output_root: LocalPath = "outputs"
    """Where run folders are made, and where `resume=auto` looks."""
