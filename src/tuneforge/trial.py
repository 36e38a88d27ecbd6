"""A run's place in a sweep: the trial that its evaluations are reported to."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trial:
    """One trial of a study, as any process of its run can find it."""

    storage: str
    """Optuna's URL of the database."""
    study: str
    """The study's name."""
    number: int
    """The trial's, in the study."""
    objective: str
    """The measure that is reported after each evaluation; "" where nothing is: a pruner has one objective."""
    pruner: dict[str, Any]
    """`_target_` and options of what may end the run early."""
