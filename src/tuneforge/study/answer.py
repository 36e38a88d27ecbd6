"""What a sweep found: the best trial as a command and as an experiment, what mattered, and what to widen."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.types import Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from tuneforge.artifacts.figures import number
from tuneforge.artifacts.kept import damaged
from tuneforge.artifacts.owned import put_text
from tuneforge.console import say
from tuneforge.errors import TuneforgeError
from tuneforge.front import front, groups
from tuneforge.importers.translation import Translation, experiment
from tuneforge.masking import masked
from tuneforge.overrides import parse
from tuneforge.shell import again, command
from tuneforge.study.store import Kept, load_study, local_storage
from tuneforge.study.stored import read_trials

EDGE = 0.02
"""Share of a range, on its own scale, that counts as its end."""
ENOUGH = 8
"""Complete trials below which an importance would be chance."""


@dataclass(frozen=True)
class Answer:
    """A study, read once."""

    root: Path
    kept: Kept
    trials: list[FrozenTrial]
    best: list[FrozenTrial]
    """The best one, or with several objectives those that no other beats in all of them; empty where none completed."""
    importances: dict[str, float]
    """Key -> share, most important first; of the first objective. Empty where there is too little to tell."""

    @classmethod
    def of(cls, root: Path, study: optuna.Study, kept: Kept) -> "Answer":
        """Of a study as it is now."""
        trials = read_trials(study, kept.directions, kept.storage or local_storage(root))
        complete = [t for t in trials if t.state is TrialState.COMPLETE]
        foreign = [t.number for t in complete if not isinstance(t.user_attrs.get("overrides"), list)]
        if foreign:
            raise damaged(root, f"has a study with trials of another program: trial {foreign[0]}")
        if not complete:
            best = []
        elif len(kept.objectives) == 1:
            best = [study.best_trial]
        else:
            best = sorted(study.best_trials, key=lambda t: t.number)
        return cls(root, kept, trials, best, _importances(study, complete))

    @classmethod
    def read(cls, root: Path, storage: str | None = None) -> "Answer":
        """Of a sweep's folder; `storage` is the database's URL where the user has named it.

        Raises:
            TuneforgeError: it is none, or its database cannot be opened or is damaged.
        """
        kept = Kept.read(root)
        return cls.of(root, load_study(storage or kept.url(root), kept.study), kept)

    def count(self, state: TrialState) -> int:
        """Trials in a state."""
        return sum(t.state is state for t in self.trials)

    @property
    def steps(self) -> int:
        """Optimizer steps that all trials took."""
        return sum(int(t.user_attrs.get("steps", 0)) for t in self.trials)

    @property
    def experiment(self) -> Path:
        """Where the best trial lies as an option of the group `experiment`."""
        return self.root / "experiment" / "best.yaml"

    def command(self, trial: FrozenTrial) -> str:
        """A trial's config as a command, at full length: without what made the trials cheap."""
        return command(*again(self.kept.fixed), *trial.user_attrs["overrides"], config_dirs=self.kept.config_dirs)

    @property
    def best_command(self) -> str:
        """The best trial as an experiment; a file cannot delete, so what the sweep deleted is deleted here."""
        deleted = [o for o in self.kept.fixed if o.startswith("~")]
        dirs = map(Path, self.kept.config_dirs)
        return command("+experiment=best", *deleted, config_dirs=list(dict.fromkeys([self.root, *dirs])))

    def values(self, trial: FrozenTrial) -> str:
        """A complete trial's objectives."""
        return ", ".join(f"{n} {number(v)}" for n, v in zip(self.kept.objectives, trial.values or (), strict=True))

    def edges(self) -> Iterator[str]:
        """Values of the best trial at an end of their range: the best may lie beyond."""
        for trial in self.best if len(self.kept.objectives) == 1 else []:
            for key, distribution in trial.distributions.items():
                end = _end(distribution, trial.params[key])
                if end:
                    yield f"{key}={number(trial.params[key])} is at the {end} of its range: look further there"

    def write_experiment(self) -> None:
        """Write `best.yaml`."""
        dirs = [Path(d) for d in self.kept.config_dirs]
        chosen, values = _split([*again(self.kept.fixed), *self.best[0].user_attrs["overrides"]], dirs)
        # Masked before it is YAML: `***` needs quotes there.
        kept = {key: masked(value, key) for key, value in values.items()}
        text = experiment(Translation("", choices=chosen, values=kept, name="best"), self.experiment, self.best_command)
        put_text(self.root, str(self.experiment.relative_to(self.root)), text)

    def tell(self) -> None:
        """Write the experiment and the page, and print what was found."""
        from tuneforge.study.page import write_page

        page = write_page(self)
        states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
        counted = ", ".join(f"{n} {name}" for name, state in states.items() if (n := self.count(state)))
        lines = [("trials", f"{counted or 'none'}; {self.steps:,} optimizer steps")]
        for trial in self.best:
            lines.append(("best" if len(self.best) == 1 else "one best", f"trial {trial.number}: {self.values(trial)}"))
            lines.append(("again", self.command(trial)))
        if self.best:
            self.write_experiment()
            lines.append(("experiment", self.best_command))
        if self.importances:
            lines.append(("importance", ", ".join(f"{k} {v:.2f}" for k, v in self.importances.items())))
        lines += [("at the edge", edge) for edge in self.edges()]
        lines += [("failed", reason) for reason in dict.fromkeys(self._reasons())]
        lines.append(("report", str(page)))
        say("\n" + "\n".join(f"{name:<13}{value}" for name, value in lines))

    def _reasons(self) -> Iterator[str]:
        for trial in self.trials:
            if trial.state is TrialState.FAIL:
                yield f"trial {trial.number}: {trial.user_attrs.get('reason', 'no reason is kept')}"


def _importances(study: optuna.Study, complete: Sequence[FrozenTrial]) -> dict[str, float]:
    """PED-ANOVA (arXiv 2304.10255) of the parameters that all trials have; it needs no package beside Optuna."""
    shared = set.intersection(*(set(t.params) for t in complete)) if complete else set()
    if len(complete) < ENOUGH or len(shared) < 2:
        return {}
    target = (lambda t: t.values[0]) if len(study.directions) > 1 else None
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=sorted(shared), target=target)
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _end(distribution: BaseDistribution, value: Any) -> str:
    """upper end, lower end, or "" for a value within, or of a thing without order; 0 is no end: nothing lies below."""
    if isinstance(distribution, FloatDistribution | IntDistribution):
        low, high = float(distribution.low), float(distribution.high)
        scale = math.log if distribution.log else float
        share = (scale(float(value)) - scale(low)) / ((scale(high) - scale(low)) or 1)
        return "upper end" if share > 1 - EDGE else "lower end" if share < EDGE and low != 0 else ""
    assert isinstance(distribution, CategoricalDistribution)
    numbers = [c for c in distribution.choices if isinstance(c, int | float) and not isinstance(c, bool)]
    if len(numbers) < 3 or len(numbers) < len(distribution.choices):
        return ""
    return {max(numbers): "upper end", min(numbers) or None: "lower end"}.get(value, "")


def _split(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[dict[str, str | list[str]], dict[str, Any]]:
    """Overrides as choices of options and as values; a file cannot hold deletions."""
    with front(config_dirs) as loader:
        known = groups(loader)
        read = [_read_back(text) for text in overrides]
    chosen: dict[str, str | list[str]] = {}
    values: dict[str, Any] = {}
    for parsed in read:
        if parsed.is_delete():
            continue
        key, value = parsed.key_or_group, parsed.value()
        if key in known:
            chosen[key] = list(map(str, value)) if isinstance(value, list) else str(value)
        else:
            values[key] = json.loads(json.dumps(value, default=str))
    return chosen, values


def _read_back(text: str) -> Override:
    try:
        return parse(text)
    except ValueError as error:
        raise TuneforgeError(
            "not-a-sweep",
            f"the sweep keeps {text[:80]!r} as an override, and it is none: {error}",
            fix="its files are damaged, or another program's",
        ) from error
