"""A run's place in a sweep: the trial that its evaluations are reported to."""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class Trial:
    """One trial of a study, as any process of its run can find it."""

    storage: str
    """Optuna's URL of the database, as it was typed: `${oc.env:...}` is looked up by each process for itself."""
    study: str
    """The study's name."""
    number: int
    """The trial's, in the study."""
    objective: str
    """The measure that is reported after each evaluation; "" where nothing is: a pruner has one objective."""
    pruner: dict[str, Any]
    """`_target_` and options of what may end the run early."""
    shared: str
    """The folder of what the trials of a sweep on this machine make once (tuneforge.shared)."""


def storage_url(storage: str) -> str:
    """The URL behind what was typed.

    Raises:
        omegaconf.errors.OmegaConfBaseException: an environment variable that is not there.
    """
    return str(OmegaConf.create({"storage": storage}).storage)
