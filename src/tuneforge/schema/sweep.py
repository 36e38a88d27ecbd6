"""How a sweep searches: the keys of `hydra.sweeper`, in Optuna's and hydra-optuna-sweeper's words."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tuneforge.schema.types import Count, Fraction, PositiveFloat, PositiveInt

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A search space, how it is searched, for how long and for what."""

    sampler: dict[str, Any]
    """The group hydra/sweeper/sampler: `_target_` and its options."""
    pruner: dict[str, Any]
    """The group hydra/sweeper/pruner."""
    objective: str | list[str] = "eval/loss"
    """Measures of the evaluation after training."""
    direction: Literal["minimize", "maximize"] | list[Literal["minimize", "maximize"]] = "minimize"
    """Which way each objective is better."""
    n_trials: PositiveInt | None = None
    """Finished trials in all, those of earlier starts of this sweep included; null: every point of a grid, else 20."""
    n_jobs: PositiveInt = 1
    """Trials that are handed to one of Hydra's own launchers at a time."""
    timeout: PositiveFloat | None = None
    """Seconds after which no further trial is started."""
    max_failure_rate: Fraction = 0.5
    """Share of `n_trials` that may fail before the sweep is given up."""
    storage: str | None = None
    """Optuna's URL of a database, as typed: `${oc.env:...}` stays; null: study.db in the sweep's folder."""
    study_name: str | None = None
    """null: the name of the sweep and a hash of what it searches, so that the same command finds its study."""
    params: dict[str, Any] = field(default_factory=dict)
    """Key or group -> its values, in Hydra's grammar."""
    custom_search_space: str | None = None
    """Dotted path of a function (config, trial) that suggests what depends on other values of the trial."""
    trial: dict[str, Any] = field(default_factory=dict)
    """Overrides of the trials alone, which make them cheap; the answer is given without them."""
    seeds: list[Count] | None = None
    """Each trial is run once a seed, and its value is the mean; null: the config's own seed."""

    @property
    def objectives(self) -> list[str]:
        """The objectives as a list."""
        return self.objective if isinstance(self.objective, list) else [self.objective]

    @property
    def directions(self) -> list[Direction]:
        """Their directions as a list."""
        return list(self.direction) if isinstance(self.direction, list) else [self.direction]
