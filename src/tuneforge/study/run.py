"""One trial: composed and judged as any run, run in its own folder, and what came of it."""

import dataclasses
import gc
import json
import math
import statistics
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tuneforge.artifacts.folder import RunFolder, is_marked, read_metrics
from tuneforge.artifacts.kept import MEASURED, REFUSED, read_record
from tuneforge.compose import Composed, compose
from tuneforge.errors import (
    EXIT_BUG,
    EXIT_OF,
    EXIT_OK,
    EXIT_REFUSED,
    TuneforgeError,
    did_you_mean,
    print_problems,
    shown,
)
from tuneforge.front import CONFIG_DIR
from tuneforge.shell import setting
from tuneforge.trial import Trial

PLACE = "TUNEFORGE_TRIAL"
"""The trial as JSON, in the environment that the job's config asks for: launchers carry it wherever that is."""


@dataclass(frozen=True)
class Outcome:
    """What came of a trial."""

    state: Literal["complete", "pruned", "failed", "interrupted"]
    values: tuple[float, ...] = ()
    """One for each objective, of a complete one."""
    reason: str = ""
    """Of a failed one."""
    code: int = EXIT_OK
    """Exit code of its run."""
    steps: int = 0
    """Optimizer steps that it took, over all seeds."""


@dataclass(frozen=True)
class Job:
    """What Hydra's launchers are to run: one trial."""

    overrides: list[str]
    config_dirs: list[Path]
    root: Path
    objectives: list[str]
    seeds: list[int]
    """One run for each; none: one with the config's own."""
    trial: Trial | None
    """None where another sweeper than ours started it."""

    @classmethod
    def of(cls, hydra: Any, root: Path) -> "Job":
        """From the node `hydra` of the job's config; `root` is its folder."""
        # Not resolved: an override that reads the environment stays one, also in what is written of the trial.
        typed: Any = OmegaConf.to_container(hydra.overrides.task, resolve=False)
        place = hydra.job.env_set.get(PLACE)
        wanted = hydra.sweeper.get("objective", "eval/loss")
        return cls(
            overrides=[str(o).removeprefix("++") for o in typed],
            config_dirs=[Path(s.path) for s in hydra.runtime.config_sources if s.provider == CONFIG_DIR],
            root=root,
            objectives=[wanted] if isinstance(wanted, str) else list(wanted),
            seeds=list(hydra.sweeper.get("seeds") or []),
            trial=Trial(**json.loads(place)) if place else None,
        )

    def compose(self) -> list[Composed]:
        """Its runs.

        Raises:
            TuneforgeError: what is wrong with them.
        """
        if not self.seeds:
            return [self._composed(self.root, [], self.trial)]
        # The runs of the other seeds would report the same evaluations again.
        quiet = dataclasses.replace(self.trial, objective="") if self.trial else None
        return [
            self._composed(self.root / f"seed-{seed}", [f"seed={seed}"], quiet if i else self.trial)
            for i, seed in enumerate(self.seeds)
        ]

    def _composed(self, folder: Path, more: Sequence[str], trial: Trial | None) -> Composed:
        # An interrupted trial goes on; one that had ended when its sweep was killed only has its numbers read again.
        again = [setting("resume", folder)] if is_marked(folder) or (folder / "run.json").is_file() else []
        overrides = [*self.overrides, *more, *again, setting("hydra.run.dir", folder)]
        return dataclasses.replace(compose(overrides, self.config_dirs), trial=trial)


def run_trial(job: DictConfig) -> Outcome:
    """Hydra's task: run the trial that the launcher started, in this process."""
    hydra = HydraConfig.get()
    asked = Job.of(hydra, Path(hydra.runtime.output_dir))
    try:
        runs = asked.compose()
    except TuneforgeError as error:
        return refused(error)
    return run_all(runs, asked.objectives)


def refused(error: TuneforgeError, steps: int = 0) -> Outcome:
    """The outcome of a trial that cannot be, told."""
    print_problems(error.problems)
    reason = "; ".join(f"{p.path}: {p.message}" if p.path else p.message for p in map(shown, error.problems))
    return Outcome("failed", reason=reason, code=error.exit_code, steps=steps)


def run_all(runs: Sequence[Composed], objectives: Sequence[str]) -> Outcome:
    """The runs of one trial, up to the first that is not complete; the values are their means.

    Raises:
        TuneforgeError: the evaluation measures no such thing as an objective.
    """
    done: list[Outcome] = []
    for composed in runs:
        done.append(_run(composed, objectives))
        if done[-1].state != "complete":
            break
    steps = sum(o.steps for o in done)
    if done[-1].state != "complete":
        return dataclasses.replace(done[-1], steps=steps)
    return Outcome("complete", tuple(map(statistics.fmean, zip(*(o.values for o in done), strict=True))), steps=steps)


def _run(composed: Composed, objectives: Sequence[str]) -> Outcome:
    """One run of a trial; whatever goes wrong with it is told, and is its outcome."""
    folder = composed.run_dir
    try:
        code = _launch(composed)
        return dataclasses.replace(outcome_of(folder, code, objectives), steps=_steps(folder))
    except TuneforgeError as error:
        if error.problems[0].code == "unknown-measure":
            raise  # so it would be in every trial
        return refused(error, _steps(folder))
    except Exception as error:  # ours or a library's: shown whole, and no reason to lose the other trials
        traceback.print_exc()
        return Outcome("failed", reason=f"{type(error).__name__}: {error}", code=EXIT_BUG, steps=_steps(folder))


def _launch(composed: Composed) -> int:
    from tuneforge.train import launch

    try:
        return launch(composed)
    finally:
        # What a trial held must be free before the next one, whatever ended it.
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def outcome_of(folder: Path, code: int, objectives: Sequence[str]) -> Outcome:
    """What a run's folder and exit code say of its trial.

    Raises:
        TuneforgeError: it has measured no such thing as an objective.
    """
    if code in EXIT_OF.values():
        return Outcome("interrupted", code=code)
    if code == EXIT_REFUSED:
        return Outcome("failed", reason=_refusal(folder), code=code)
    if code != EXIT_OK:
        return Outcome("failed", reason=f"its processes ended in exit code {code}", code=code)
    record = read_record(folder, MEASURED)
    if record["status"] == "pruned":
        return Outcome("pruned")
    measured = record["metrics"]["after"]
    missing = [name for name in objectives if name not in measured]
    if missing:
        raise TuneforgeError(
            "unknown-measure",
            f"is {missing[0]}, and the evaluation of this run measures no such thing",
            path="hydra.sweeper.objective",
            fix=did_you_mean(missing[0], measured),
        )
    values = tuple(float(measured[name]) for name in objectives)
    wrong = [n for n, v in zip(objectives, values, strict=True) if not math.isfinite(v)]
    if wrong:
        return Outcome("failed", reason=f"{wrong[0]} is {values[objectives.index(wrong[0])]}")
    return Outcome("complete", values)


def _refusal(folder: Path) -> str:
    """What the guards and gates of a refused run said last."""
    record = read_record(folder, REFUSED)
    said = [e["message"] for guard in record["guards"].values() for e in guard["events"][-1:]]
    said += [str(gate["name"]) for gate in record["gates"] if not gate["passed"]]
    return f"a check refused the result: {'; '.join(said) or 'see its run.json'}"


def _steps(folder: Path) -> int:
    """Optimizer steps that a run's log tells of; none of a damaged one, which ends its trial and no other."""
    with suppress(TuneforgeError):
        return max((int(m["step"]) for m in read_metrics(RunFolder(folder).metrics) if "train/loss" in m), default=0)
    return 0
