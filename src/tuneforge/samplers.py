"""Samplers and pruners of Optuna from their config nodes."""

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from tuneforge.errors import TuneforgeError
from tuneforge.targets import PRUNERS, SAMPLERS, instead_of, load, why_untrusted

AUTO, GRID = "auto", "grid"
"""Targets of our own: what decides by the space, and what needs no sampler."""
TPE = {"_target_": "optuna.samplers.TPESampler", "multivariate": True, "group": True, "n_startup_trials": 8}
"""What `auto` is where values cannot be listed: conf/hydra/sweeper/sampler/tpe.yaml."""
NONE = "optuna.pruners.NopPruner"
_NEEDS = {"CmaEsSampler": "cmaes", "GPSampler": "scipy", "QMCSampler": "scipy"}
"""Packages that Optuna imports when such a sampler first draws, which would be in the midst of a sweep."""


def is_grid(node: Mapping[str, Any], *, listed: bool) -> bool:
    """Whether every combination is tried; `listed`: the values of all keys can be."""
    return node["_target_"] == GRID or (node["_target_"] == AUTO and listed)


def make_sampler(node: Mapping[str, Any], seed: int) -> BaseSampler:
    """The sampler of a node, seeded where the node does not say with what.

    Raises:
        TuneforgeError: no such sampler or option, or a package that it needs is not there.
    """
    options = TPE if node["_target_"] == AUTO else node
    own = {k: v for k, v in options.items() if k != "seed" or v is not None}
    sampler = _make({"seed": seed, **own}, SAMPLERS)
    assert isinstance(sampler, BaseSampler)
    return sampler


def make_pruner(node: Mapping[str, Any]) -> BasePruner:
    """The pruner of a node.

    Raises:
        TuneforgeError: no such pruner or option.
    """
    pruner = _make(node, PRUNERS)
    assert isinstance(pruner, BasePruner)
    return pruner


def _make(node: Mapping[str, Any], group: str) -> Any:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path, target = group.replace("/", "."), str(node.get("_target_"))
    refusal = why_untrusted(group, target)
    if refusal:
        raise TuneforgeError("untrusted-target", refusal, path=path, fix=instead_of(group, target))
    package = _NEEDS.get(target.rpartition(".")[2])
    if package and importlib.util.find_spec(package) is None:
        raise TuneforgeError(
            "sampler-needs", f"{target} needs the package {package}", path=path, fix="pip install 'tuneforge[sweep]'"
        )
    try:
        with warnings.catch_warnings():
            # Multivariate TPE has been experimental since Optuna 2.2, and is what its authors recommend.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return load(group, target)(**{k: v for k, v in node.items() if k != "_target_"})
    except (TypeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        fix = f"choose one of the group: {group}=..., and options of its own"
        raise TuneforgeError("bad-search", f"{target}: {why}", path=path, fix=fix) from error
