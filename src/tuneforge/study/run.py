"""One trial: composed and judged as any run, run in its own folder, and what came of it."""

import dataclasses
import gc
import json
import math
import os
import statistics
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from tuneforge.artifacts.folder import RunFolder, read_json, read_metrics
from tuneforge.compose import Composed, compose
from tuneforge.errors import EXIT_BUG, EXIT_OF, EXIT_OK, EXIT_REFUSED, TuneforgeError, did_you_mean, print_problems
from tuneforge.front import CONFIG_DIR
from tuneforge.trial import Trial

PLACE = "TUNEFORGE_TRIAL"
"""The trial as JSON, in the environment of the job that runs it: Hydra's launchers carry it wherever that is."""


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


def run_trial(job: DictConfig) -> Outcome:
    """Hydra's task: run the trial that the launcher started."""
    hydra = HydraConfig.get()
    place = os.environ.get(PLACE)
    trial = Trial(**json.loads(place)) if place else None
    overrides = [str(o).removeprefix("++") for o in hydra.overrides.task]
    config_dirs = [Path(s.path) for s in hydra.runtime.config_sources if s.provider == CONFIG_DIR]
    root = Path(hydra.runtime.output_dir)
    wanted = hydra.sweeper.get("objective", "eval/loss")
    objectives = [wanted] if isinstance(wanted, str) else list(wanted)
    done: list[Outcome] = []
    for seed in hydra.sweeper.get("seeds") or [None]:
        folder = root if seed is None else root / f"seed-{seed}"
        seeded = [] if seed is None else [f"seed={seed}"]
        # The runs of the other seeds would report the same evaluations again.
        reporting = trial if trial is None or not done else dataclasses.replace(trial, objective="")
        outcome = run([*overrides, *seeded], config_dirs, folder, objectives, reporting)
        done.append(outcome)
        if outcome.state != "complete":
            break
    steps = sum(o.steps for o in done)
    if done[-1].state != "complete":
        return dataclasses.replace(done[-1], steps=steps)
    return Outcome("complete", tuple(map(statistics.fmean, zip(*(o.values for o in done), strict=True))), steps=steps)


def run(
    overrides: Sequence[str], config_dirs: Sequence[Path], folder: Path, objectives: Sequence[str], trial: Trial | None
) -> Outcome:
    """One run of a trial; whatever goes wrong with it is told, and is its outcome."""
    # An interrupted trial goes on; one that had ended when its sweep was killed only has its numbers read again.
    again = [f"resume={json.dumps(str(folder))}"] if (folder / "run.json").is_file() else []
    try:
        composed = compose([*overrides, *again, f"hydra.run.dir={json.dumps(str(folder))}"], config_dirs)
        code = _launch(dataclasses.replace(composed, trial=trial))
    except TuneforgeError as error:
        if error.problems[0].code == "unknown-measure":
            raise  # so it would be in every trial
        print_problems(error.problems)
        reason = "; ".join(f"{p.path}: {p.message}" if p.path else p.message for p in error.problems)
        return Outcome("failed", reason=reason, code=error.exit_code, steps=_steps(folder))
    except Exception as error:  # ours or a library's: shown whole, and no reason to lose the other trials
        traceback.print_exc()
        return Outcome("failed", reason=f"{type(error).__name__}: {error}", code=EXIT_BUG, steps=_steps(folder))
    return dataclasses.replace(outcome_of(folder, code, objectives), steps=_steps(folder))


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
    record = _record(folder)
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
    record = _record(folder)
    said = [e["message"] for guard in record["guards"].values() for e in guard["events"][-1:]]
    said += [str(gate["name"]) for gate in record["gates"] if not gate["passed"]]
    return f"a check refused the result: {'; '.join(said) or 'see its run.json'}"


def _steps(folder: Path) -> int:
    """Optimizer steps that a run's log tells of."""
    return max((int(m["step"]) for m in read_metrics(RunFolder(folder).metrics) if "train/loss" in m), default=0)


def _record(folder: Path) -> dict[str, Any]:
    return read_json(RunFolder(folder).record)
