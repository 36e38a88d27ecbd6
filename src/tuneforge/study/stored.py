"""What a database keeps of a study, checked before it is used: SQLite takes any value in any column."""

import math
from collections.abc import Sequence

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from tuneforge.artifacts.kept import NUMBER, Shape, mismatch
from tuneforge.study.store import no_study

TRIAL: Shape = {"number": int, "values": [NUMBER], "intermediate": {"*": NUMBER}, "attributes": dict}
ATTRIBUTES: Shape = {"steps": int, "reason": str, "folder": str, "sweep": str, "overrides": [str]}
"""What a sweep keeps of a trial; only `overrides` is there for every complete one."""


def read_trials(study: optuna.Study, directions: Sequence[str], storage: str) -> list[FrozenTrial]:
    """All trials of a study.

    Raises:
        TuneforgeError: the database is damaged, or another program has written into it.
    """
    try:
        present = [direction.name.lower() for direction in study.directions]
        trials = study.get_trials(deepcopy=False)
    except (SQLAlchemyError, StorageInternalError, LookupError, ValueError, TypeError, AttributeError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise no_study(storage, f"it is damaged: {why}") from error
    if present != list(directions):
        raise no_study(
            storage, f"its study is to {', '.join(present) or 'nothing'}, and not to {', '.join(directions)}"
        )
    kinds: dict[str, bool] = {}
    for trial in trials:
        wrong = _wrong(trial, len(directions), kinds)
        if wrong:
            raise no_study(storage, f"of trial {trial.number}, {wrong}")
    return trials


def _wrong(trial: FrozenTrial, objectives: int, kinds: dict[str, bool]) -> str:
    """What of a trial is not as a sweep writes it; `kinds` of its parameters, of the trials before it."""
    complete = trial.state is TrialState.COMPLETE
    attributes = trial.user_attrs
    values = list(trial.values or ())
    facts = {
        "number": trial.number,
        "values": values,
        "intermediate": trial.intermediate_values,
        "attributes": attributes,
    }
    required = [name for name in ATTRIBUTES if name in attributes or (complete and name == "overrides")]
    wrong = mismatch(facts, TRIAL) or mismatch(attributes, {name: ATTRIBUTES[name] for name in required})
    if wrong or not complete:
        return wrong
    if len(values) != objectives or not all(map(math.isfinite, values)):
        return f"the values are {values}"
    return next(filter(None, (_wrong_param(trial, key, kinds) for key in trial.params)), "")


def _wrong_param(trial: FrozenTrial, key: str, kinds: dict[str, bool]) -> str:
    value, distribution = trial.params[key], trial.distributions.get(key)
    listed = isinstance(distribution, CategoricalDistribution)
    if kinds.setdefault(key, listed) is not listed:
        return f"{key} has values of another kind than in the trials before"
    if isinstance(distribution, FloatDistribution | IntDistribution):
        inside = isinstance(value, int | float) and distribution.low <= value <= distribution.high
        return "" if inside else f"{key} is {value!r}"
    return ""
