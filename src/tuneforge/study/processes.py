"""Several trials at a time on one machine: hydra/launcher=processes deals the GPUs out to them."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from tuneforge.artifacts.claim import is_held, write_gone
from tuneforge.artifacts.folder import append_text, read_json
from tuneforge.children import GRACE, Child, end_with_parent, passing_on
from tuneforge.console import say
from tuneforge.errors import EXIT_BUG, EXIT_OF, EXIT_OK, Problem, TuneforgeError
from tuneforge.handover import pack
from tuneforge.study.run import Job, Outcome, refused
from tuneforge.study.slots import Ended

WORKERS = "hydra.launcher.workers"
LOGS = "logs"
"""In the sweep's folder: what each trial printed."""


@dataclass
class _Started:
    """A trial in its process."""

    process: Child
    handover: Path
    """What it is to run, and beside it what came of it."""
    gpus: str | None
    log: Path
    folders: list[Path]
    """Of its runs, one a seed."""


class ProcessLauncher(Launcher):
    """The launcher of conf/hydra/launcher/processes.yaml. Our sweeper fills a place as soon as it is free."""

    def __init__(self, workers: Any = None) -> None:
        """`workers`: trials at a time; None: as many as have GPUs, without any one for each two cores.

        Raises:
            TuneforgeError: it is no number of processes.
        """
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
            raise TuneforgeError("bad-workers", f"is {workers!r}; wanted: a whole number from 1, or null", path=WORKERS)
        self._workers = workers
        self._children: dict[int, _Started] = {}
        self._over: dict[int, Ended] = {}
        """Trials that ended before they had a process."""
        self.stopped = EXIT_OK
        self._handovers: tempfile.TemporaryDirectory[str] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Deal out the GPUs.

        Raises:
            TuneforgeError: there are not as many as the workers need.
        """
        self._loader = hydra_context.config_loader
        self._config = config
        asked = OmegaConf.select(config, "trainer.devices")
        each = asked if isinstance(asked, int) else 1
        gpus = _gpus() if OmegaConf.select(config, "trainer.accelerator") in (None, "auto", "cuda") else []
        hands = [",".join(gpus[i : i + each]) for i in range(0, len(gpus) - each + 1, each)]
        if gpus and (self._workers or 1) > len(hands):
            raise TuneforgeError(
                "too-few-gpus",
                f"is {self._workers or 1}, each with {each} GPUs (trainer.devices), and {len(gpus)} are visible",
                path=WORKERS,
                fix=f"{WORKERS}={len(hands)}" if hands else f"trainer.devices={len(gpus)}",
            )
        self.workers = self._workers or len(hands) or max(1, (os.cpu_count() or 1) // 2)
        self._free: list[str | None] = [*hands[: self.workers]] if gpus else [None] * self.workers

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """For other sweepers than ours: all of these, in the order given."""
        waiting = {initial_job_idx + i: job for i, job in enumerate(job_overrides)}
        done: dict[int, Ended] = {}
        while len(done) < len(job_overrides):
            while waiting and self.room() and not self.stopped:
                number = min(waiting)
                self.start(number, waiting.pop(number))
            if self.stopped:
                done |= {number: Outcome("interrupted", code=self.stopped) for number in waiting}
                waiting.clear()
            if self._children or self._over:
                done |= self.ended()
        self.close()
        return [_as_job(done[initial_job_idx + i], job) for i, job in enumerate(job_overrides)]

    # ---- places for trials

    def room(self) -> int:
        """Workers without a trial."""
        return len(self._free)

    def start(self, number: int, job: Sequence[str]) -> None:
        """Compose a trial, and start it where nothing is wrong with it."""
        config = self._loader.load_sweep_config(self._config, list(job))
        with open_dict(config):
            config.hydra.job.id, config.hydra.job.num = str(number), number
        sweep = Path(str(config.hydra.sweep.dir))
        asked = Job.of(config.hydra, sweep / str(config.hydra.sweep.subdir))
        _left(asked.root)
        try:
            runs = asked.compose()
        except TuneforgeError as error:
            self._over[number] = refused(error)
            return
        self._handovers = self._handovers or tempfile.TemporaryDirectory(prefix="tuneforge-")
        handover = Path(self._handovers.name) / f"{number}.json"
        told = {"runs": [pack(run) for run in runs], "objectives": asked.objectives}
        handover.write_text(json.dumps(told), encoding="utf-8")
        log = sweep / LOGS / f"{number}.log"
        append_text(log, "")  # refuses a link there
        gpus = self._free.pop(0)
        self._children[number] = _Started(
            self._spawned(handover, gpus, log), handover, gpus, log, [run.run_dir for run in runs]
        )
        say(f"trial {number} has started{f' on GPU {gpus}' if gpus else ''}: {log}")

    def _spawned(self, handover: Path, gpus: str | None, log: Path) -> Child:
        environment = dict(os.environ)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        # Else each would start as many threads as there are cores.
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.workers)))
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "tuneforge.study.worker", str(handover)],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # signals reach it through us alone, and each of them once
                preexec_fn=end_with_parent,  # noqa: PLW1509  there are no other threads
            )

    def ended(self) -> Mapping[int, Ended]:
        """Wait for the next that ends. A signal goes to all: they save and end; the second one ends them at once."""
        with passing_on(lambda: [child.process for child in self._children.values()]) as received:
            while not self._over and all(c.process.poll() is None for c in self._children.values()):
                time.sleep(0.02)
        if received:
            self.stopped = EXIT_OF[signal.Signals(received[-1])]
        over, self._over = self._over, {}
        for number in [n for n, c in self._children.items() if c.process.poll() is not None]:
            child = self._children.pop(number)
            self._free.append(child.gpus)
            over[number] = self._outcome(child)
        return over

    def close(self) -> None:
        """SIGTERM to those that still run: they save, and go on when the sweep does."""
        for child in self._children.values():
            child.process.send_signal(signal.SIGTERM)
        until = time.monotonic() + GRACE
        for child in self._children.values():
            try:
                child.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children.clear()
        if self._handovers is not None:
            self._handovers.cleanup()
            self._handovers = None

    def _outcome(self, child: _Started) -> Ended:
        file = outcome_file(child.handover)
        if file.is_file():
            told = read_json(file)
            if "problems" in told:
                return TuneforgeError.of(Problem(**problem) for problem in told["problems"])
            return Outcome(**{**told, "values": tuple(told["values"])})
        for folder in child.folders:  # the process was killed, and could not write its end
            write_gone(folder)
        code = child.process.returncode
        if self.stopped and code:
            return Outcome("interrupted", code=self.stopped)
        if code < 0:
            why = f"its process was ended by {signal.Signals(-code).name}, mostly because the host's memory ran out"
        else:
            why = f"its process ended in exit code {code}"
        return Outcome("failed", reason=f"{why}; what it printed: {child.log}", code=EXIT_BUG)


def outcome_file(handover: Path) -> Path:
    """Where a trial's process writes what came of it."""
    return handover.with_suffix(".outcome.json")


def as_told(ended: Ended) -> dict[str, Any]:
    """What it writes there."""
    if isinstance(ended, TuneforgeError):
        return {"problems": [dataclasses.asdict(problem) for problem in ended.problems]}
    return dataclasses.asdict(ended)


def _gpus() -> list[str]:
    """Those this process may use, by the names that CUDA_VISIBLE_DEVICES gives them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    import torch

    count = torch.cuda.device_count()
    return [n.strip() for n in named.split(",")][:count] if named else [str(i) for i in range(count)]


def _left(folder: Path) -> None:
    """Return when nobody is in a trial's folder, or seems to stay: after a kill of the sweep, trials save first."""
    until = time.monotonic() + GRACE
    while is_held(folder) and time.monotonic() < until:
        time.sleep(0.1)


def _as_job(ended: Ended, overrides: Sequence[str]) -> JobReturn:
    failed = isinstance(ended, TuneforgeError)
    job = JobReturn(overrides=overrides, status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
    job.return_value = ended
    return job
