"""What every guard shares: what it found is said once, kept, counted in the metrics, and can end the run in order."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from tuneforge.artifacts.folder import STOPPED
from tuneforge.console import warn
from tuneforge.errors import Problem, shown
from tuneforge.steps import StepFacts

MAX_EVENTS = 100
"""Findings of one guard that run.json keeps, and the one that ended the run; all of them are counted."""

S = TypeVar("S")


@dataclass(frozen=True)
class Gate:
    """One line of the list."""

    name: str
    passed: bool | None
    """None: not measured, and nothing hangs on it."""
    value: str
    """What was measured."""
    wanted: str
    """What would pass, where it did not; and how."""

    def __str__(self) -> str:
        return f"{self.name}: {self.value}" + (f"; wanted: {self.wanted}" if self.wanted and not self.passed else "")


@dataclass(frozen=True)
class Tile:
    """A number of the whole run, for the top of report.html."""

    name: str
    value: str
    beside: str = ""
    """Smaller, under it."""


@dataclass(frozen=True)
class Table:
    """What a guard has to show in report.html."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    """Cells as they are shown, one a column."""
    numbers: list[str]
    """Columns that hold numbers."""
    folded: bool = False
    """Of long texts, which are shown when asked for."""


class Guard(pl.Callback):
    """Watches a run. Its `action` says what follows a finding:

    none: the guard is off · warn: it is said · stop: the run ends, the best checkpoint restored and exported, with exit
    code 3 · repair, where a guard offers it: what it can do itself.
    """

    name: ClassVar[str]
    """Of its node in the config, and in front of its keys in metrics.jsonl."""

    def __init__(self, action: str) -> None:
        self.action = action
        self.events: list[dict[str, Any]] = []
        """What was found, oldest first, for run.json."""
        self.count = 0
        """How often something was found."""
        self.gauges: dict[str, float] = {}
        """What each logged step shows, without the guard's name."""
        self.refusal: Problem | None = None
        """Why this guard ended the run."""
        self.disowns = False
        """The weights as they are must not be kept as the best."""
        self.idle = ""
        """Why there is nothing to watch in this run."""

    @property
    def on(self) -> bool:
        """Whether it watches."""
        return self.action != "none" and not self.idle

    @property
    def path(self) -> str:
        """Its node in the config."""
        return f"callbacks.{self.name}"

    def state_dict(self) -> dict[str, Any]:
        """What was found so far."""
        return {"events": self.events, "count": self.count, "gauges": dict(self.gauges)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.events, self.count = list(state_dict["events"]), int(state_dict["count"])
        self.gauges |= state_dict["gauges"]

    @property
    def of_result(self) -> dict[str, float]:
        """What it measured of the weights that the run leaves: part of the result's metrics, under the guard's name."""
        return {}

    def gates(self) -> list[Gate]:
        """What it has to say of the result in the list of quality gates; asked of guards that are off, too."""
        return []

    def tiles(self) -> list[Tile]:
        """Its numbers of the whole run, for report.html."""
        return []

    def tables(self) -> list[Table]:
        """What it has to show in report.html beside its findings and curves, which are there anyway."""
        return []

    def catch_up(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Judge what has been put off. Called by all processes alike, before weights are measured or saved."""

    def as_record(self) -> dict[str, Any]:
        """For run.json."""
        parts: dict[str, Sequence[Tile | Table]] = {"tiles": self.tiles(), "tables": self.tables()}
        shown = {name: [asdict(part) for part in found] for name, found in parts.items() if found}
        return {"action": self.action, "count": self.count, "events": self.events, **shown}

    def found(self, trainer: pl.Trainer, problem: Problem, *, step: int | None = None, did: str = "warned") -> None:
        """Keep a finding; the console and TensorBoard show the first of its code. Called by all processes alike."""
        told = {e["code"] for e in self.events}
        self.count += 1
        where = trainer.global_step if step is None else step
        event = {"step": where, "code": problem.code, "did": did, "message": problem.message, "fix": problem.fix}
        if len(self.events) < MAX_EVENTS or did == STOPPED:
            self.events.append(event)
        if problem.code in told:
            return
        warn(problem)
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text(f"{self.name}/{problem.code}", str(shown(problem)), where)

    def stop(self, trainer: pl.Trainer, problem: Problem, *, step: int | None = None) -> None:
        """End the run after this step or evaluation, with exit code 3. Called by all processes alike."""
        self.found(trainer, problem, step=step, did=STOPPED)
        self.refusal = problem
        trainer.should_stop = True

    def act(self, trainer: pl.Trainer, problem: Problem, *, step: int | None = None) -> None:
        """Stop or warn, as `action` says."""
        (self.stop if self.action == "stop" else self.found)(trainer, problem, step=step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimizer step: put the gauges into its line of the log."""
        if self.gauges and self.on and steps(trainer, batch_idx):
            pl_module.log_dict({f"{self.name}/{key}": float(value) for key, value in self.gauges.items()})


class StepGuard(Guard, Generic[S]):
    """A guard of optimizer steps. The host looks at a step when the next one has run: it waits for no device.

    An evaluation and a checkpoint wait for the device anyway: before them, the newest step is judged too. So what was
    measured belongs to weights that were judged, and a resumed run misses no step.
    """

    def __init__(self, action: str) -> None:
        super().__init__(action)
        self._unseen: deque[S] = deque()

    def watch(self, facts: StepFacts, optimizer: torch.optim.Optimizer) -> None:
        """Before an optimizer step, on the device: put down (`keep`) what `judge` will look at."""
        raise NotImplementedError

    def judge(self, trainer: pl.Trainer, pl_module: Any, seen: S) -> None:
        """On the host: what `watch` put down."""
        raise NotImplementedError

    def keep(self, seen: S) -> None:
        """Put down what is to be judged."""
        self._unseen.append(seen)

    @property
    def hurried(self) -> bool:
        """Whether steps are to be judged at once: something was found just now, and waiting is cheap beside it."""
        return False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Ask to be told of each step."""
        if self.on:
            pl_module.watchers.append(self.watch)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimizer step: judge the one before."""
        if self.on and steps(trainer, batch_idx):
            while len(self._unseen) > 1 or (self._unseen and self.hurried):
                self.judge(trainer, pl_module, self._unseen.popleft())
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def catch_up(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Judge all steps there were. Called by all processes alike."""
        while self._unseen:
            self.judge(trainer, pl_module, self._unseen.popleft())

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Before the weights are measured."""
        self.catch_up(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The last step has none after it."""
        self.catch_up(trainer, pl_module)


class Late:
    """A few numbers on their way from the device, which nobody waits for before they are read."""

    def __init__(self, numbers: Tensor) -> None:
        """`numbers` has the shape [n]."""
        self._host, self._there = numbers, None
        if numbers.is_cuda:
            # Read a step later with `.item()`, they would queue behind that step: the copy must be under way now.
            self._host = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._there = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._there.record()

    def read(self) -> list[float]:
        """The numbers."""
        if self._there is not None:
            self._there.synchronize()
        return [float(n) for n in self._host.tolist()]


def steps(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether an optimizer step was taken with this micro-batch."""
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


def token_ids(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The tokens of a micro-batch: one tensor [rows, tokens] for most objectives, several where rows come in pairs."""
    return [tensor for key, tensor in batch.items() if key.endswith("input_ids")]


def agreed(trainer: pl.Trainer, flag: bool) -> bool:
    """Whether any process says so. Called by all of them."""
    if trainer.world_size == 1:
        return flag
    return bool(any_process(trainer, torch.tensor(float(flag), device=trainer.strategy.root_device)))


def any_process(trainer: pl.Trainer, flags: Tensor) -> Tensor:
    """The largest of each number over the processes, on the device."""
    if trainer.world_size > 1:
        flags = flags.to(trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
    return flags


def every_guard(trainer: pl.Trainer) -> list[Guard]:
    """The guards of a run, those that are off among them."""
    return [c for c in trainer.callbacks if isinstance(c, Guard)]  # type: ignore[attr-defined]


def guards(trainer: pl.Trainer) -> dict[str, Guard]:
    """The guards of a run that watch, by name."""
    return {guard.name: guard for guard in every_guard(trainer) if guard.on}


def refusal(trainer: pl.Trainer) -> Problem | None:
    """Why a guard ended the run, if one did."""
    return next((g.refusal for g in guards(trainer).values() if g.refusal is not None), None)
