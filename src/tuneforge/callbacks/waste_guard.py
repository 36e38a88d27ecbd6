"""Time and hardware that teach nothing: waiting for rows, evaluations, a run that slows down, a GPU without work."""

import statistics
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import psutil
import torch

from tuneforge.callbacks.gpu_use import GpuUse
from tuneforge.callbacks.guard import Gate, Guard, Tile, any_process, steps, token_ids
from tuneforge.errors import Problem
from tuneforge.schema.types import Fraction, PositiveInt

WARM = 5
"""Steps that are not looked at: the first rows start worker processes, the first passes choose kernels."""
LEAST_EVALUATING = 10.0
"""Seconds of evaluations under which their share is not worth a word."""
MEMORY_LEFT = 0.5
"""Share of a GPU's memory that, never used, has room for more rows in a pass."""
OTHERS = 0.2
"""Share of the host's cores which others may take before the speed of a run on those cores says nothing of the run."""


class Pause:
    """From the end of a micro-batch to the start of the next.

    The host's wait for rows is lost time only while the device has nothing to do: queued steps run on, and what the
    host does beside (writing the log, which waits for the device) is no wait for rows. So it is the lesser of both.
    """

    def __init__(self, device: torch.device) -> None:
        self._ends: list[torch.cuda.Event] = []
        self._waited = 0.0
        if device.type == "cuda":
            self._ends = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            self._ends[0].record()

    def end(self, waited: float) -> None:
        """The next micro-batch is there, for which the host waited so many seconds."""
        self._waited = waited
        if self._ends:
            self._ends[1].record()

    def lost(self) -> float:
        """Seconds; asked when the steps after it are queued, so that no device waits for the answer."""
        if not self._ends:
            return self._waited
        self._ends[1].synchronize()
        idle: float = self._ends[0].elapsed_time(self._ends[1]) / 1000
        return min(self._waited, idle)


@dataclass
class Half:
    """Half a window of steps."""

    seconds: list[float] = field(default_factory=list)
    """Of each step between whose ends no evaluation lay."""
    pauses: list[Pause] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)
    """Places for tokens computed a second, of each step."""
    others: float = 0.0
    """Share of the host's cores that other programs took."""
    waited: float = 0.0

    def close(self, others: float) -> None:
        """Nothing comes to it any more."""
        self.waited, self.others = sum(pause.lost() for pause in self.pauses), others
        self.pauses.clear()

    @property
    def wait(self) -> float:
        """Share of its time that was lost waiting for rows."""
        return self.waited / sum(self.seconds) if self.seconds else 0.0


class WasteGuard(Guard):
    """Looks every half window at where the time went. It waits for no device, and all processes judge the worst."""

    name: ClassVar[str] = "waste_guard"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop"] = "warn",
        window: PositiveInt = 20,
        max_wait: Fraction = 0.2,
        max_fall: Fraction = 0.5,
        max_eval: Fraction = 0.3,
        min_use: Fraction = 0.5,
    ) -> None:
        """A finding is: in both halves of `window` steps more than `max_wait` of the time spent waiting for rows; a
        median speed that is `max_fall` under that of the run's first window; more than `max_eval` of the run's time
        in evaluations; a GPU that ran something in less than `min_use` of the time; or, where steps are made of several
        passes, one whose memory stayed half empty. The first steps are not looked at.
        """
        super().__init__(action)
        self.half = max(1, window // 2)
        self.max_wait = max_wait
        self.max_fall = max_fall
        self.max_eval = max_eval
        self.min_use = min_use
        self.gpu: GpuUse | None = None
        self._totals = {"steps": 0.0, "waited": 0.0, "evaluating": 0.0, "run": 0.0}
        self._halves: deque[Half] = deque([Half()], maxlen=2)
        self._first: float | None = None
        self._taken = 0
        self._pause: Pause | None = None
        self._pauses: list[Pause] = []
        self._places = 0
        self._began: float | None = None
        self._waited = self._last = self._evaluation = 0.0
        self._process = psutil.Process()

    # ---- what is kept

    def state_dict(self) -> dict[str, Any]:
        """With the totals. A resumed run may be on another machine: its speed is compared with its own."""
        return {**super().state_dict(), "totals": dict(self._totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._totals |= state_dict["totals"]
        self.gauges.pop("speed", None)

    def as_record(self) -> dict[str, Any]:
        """With the use of the whole run, in shares."""
        return {**super().as_record(), "use": self.use()}

    def use(self) -> dict[str, float]:
        """Where the time of the run went, and how far its GPU was used; what was not measured is not there."""
        totals, found = self._totals, {}
        if totals["steps"]:
            found["data_wait"] = totals["waited"] / totals["steps"]
        if totals["run"]:
            found["eval_time"] = totals["evaluating"] / totals["run"]
        return found | (self.gpu.as_shares() if self.gpu else {})

    def gates(self) -> list[Gate]:
        """Whether the GPU was used, where there is one whose driver tells."""
        use = self.use()
        if not self.on or "gpu_utilisation" not in use:
            return []
        busy, least = use["gpu_utilisation"], self.min_use
        value = f"the GPU was busy for {busy:.0%} of the time, with at most {use['gpu_memory']:.0%} of its memory"
        return [Gate("utilisation", busy >= least, value, f"{least:.0%} or more; what {self.name} says, if it does")]

    def tiles(self) -> list[Tile]:
        """Where the time went."""
        use, found = self.use(), []
        if "data_wait" in use:
            evaluating = f"{100 * use['eval_time']:.0f} % in evaluations" if "eval_time" in use else ""
            found.append(Tile("Waiting for rows", f"{100 * use['data_wait']:.1f} % of the time", evaluating))
        if "gpu_utilisation" in use:
            memory = f"at most {100 * use['gpu_memory']:.0f} % of its memory"
            found.append(Tile("GPU busy", f"{100 * use['gpu_utilisation']:.0f} % of the time", memory))
        return found

    # ---- measuring

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clocks."""
        self._last = time.perf_counter()
        self._host_share()
        if self.on and pl_module.device.type == "cuda":
            self.gpu = GpuUse(pl_module.device)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The rows are there."""
        if not self.on:
            return
        loader: Any = trainer.train_dataloader
        waited = loader.waited
        if self._pause is not None:
            self._pause.end(waited - self._waited)
            self._pauses.append(self._pause)
        self._waited = waited
        self._places += sum(ids.numel() for ids in token_ids(batch))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """A pause begins; after an optimizer step, its time is known."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if not self.on:
            return
        if steps(trainer, batch_idx):
            self._close_step(trainer, pl_module)
        self._pause = Pause(pl_module.device)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The step in which an evaluation lies is not measured."""
        self._began = self._pause = None
        self._evaluation = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count it; callbacks that come later save checkpoints, which is no part of it."""
        if not self.on or trainer.state.fn != "fit":
            return
        self._totals["evaluating"] += time.perf_counter() - self._evaluation
        self._pass()
        self._judge_evaluations(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The time since the last look counts too."""
        if self.on:
            self._pass()

    def _close_step(self, trainer: pl.Trainer, pl_module: Any) -> None:
        now, half = time.perf_counter(), self._halves[-1]
        self._taken += 1
        if self.gpu is not None:
            self.gpu.look(now)
        if self._began is not None and self._taken > WARM:
            half.seconds.append(now - self._began)
            half.speeds.append(self._places / (now - self._began))
            half.pauses.extend(self._pauses)
        self._began, self._places, self._pauses = now, 0, []
        if self._taken > WARM and (self._taken - WARM) % self.half == 0:
            self._close_half(trainer, pl_module)

    def _close_half(self, trainer: pl.Trainer, pl_module: Any) -> None:
        half = self._halves[-1]
        half.close(self._host_share())
        self._totals["steps"] += sum(half.seconds)
        self._totals["waited"] += half.waited
        self._pass()
        if len(self._halves) == 2:
            self._judge(trainer, pl_module)
        self._halves.append(Half())

    def _pass(self) -> None:
        now = time.perf_counter()
        self._totals["run"] += now - self._last
        self._last = now

    def _host_share(self) -> float:
        """Share of the host's cores that other programs took since the last call."""
        cores = psutil.cpu_count() or 1
        everyone, own = psutil.cpu_percent() / 100, self._process.cpu_percent() / 100 / cores
        return max(0.0, everyone - own)

    # ---- judging

    def _judge(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Both halves of a window, by the worst process of each number."""
        speeds = [speed for half in self._halves for speed in half.speeds]
        if speeds and self._first is None:
            self._first = statistics.median(speeds)
        speed = statistics.median(speeds) / self._first if speeds and self._first else 1.0
        # On a CPU whose cores others take, no run keeps its speed.
        stolen = pl_module.device.type != "cuda" and max(half.others for half in self._halves) > OTHERS
        idle = self.gpu.idle() if self.gpu else 0.0
        seen = [min(half.wait for half in self._halves), 0.0 if stolen else 1 - speed, idle]
        wait, fall, idle = any_process(trainer, torch.tensor(seen)).tolist()
        self.gauges |= {"data_wait": wait, "speed": speed}
        if self.gpu is not None:
            self.gauges |= {f"gpu_{name}": 100 * share for name, share in self.gpu.now().items()}
        if wait > self.max_wait:
            self._tell(trainer, self._waits(trainer, pl_module, wait))
        elif fall > self.max_fall:
            self._tell(trainer, self._slower(trainer, 1 - fall))
        elif idle > 1 - self.min_use:
            self._tell(trainer, self._idles(pl_module, 1 - idle))
        if self.gpu is not None and trainer.accumulate_grad_batches > 1:
            self._judge_memory(trainer, pl_module, self.gpu.memory())

    def _judge_memory(self, trainer: pl.Trainer, pl_module: Any, share: float) -> None:
        fullest = float(any_process(trainer, torch.tensor(share)))
        if fullest < MEMORY_LEFT:
            rows, passes = pl_module.context.settled.per_device, trainer.accumulate_grad_batches
            message = (
                f"a step is made of {passes} passes of {rows} rows, and at most {fullest:.0%} of the memory is used"
            )
            fix = f"more rows in a pass: batch.per_device={2 * rows} (the effective batch stays)"
            self._tell(trainer, Problem("memory-unused", message, self.path, fix=fix))

    def _judge_evaluations(self, trainer: pl.Trainer, pl_module: Any) -> None:
        spent, run = self._totals["evaluating"], self._totals["run"]
        share, spent = any_process(trainer, torch.tensor([spent / run, spent])).tolist()
        self.gauges["eval_time"] = share
        if share > self.max_eval and spent > LEAST_EVALUATING:
            config = pl_module.context.config
            rarer = min(0.5, 2 * v) if isinstance(v := config.trainer.val_check_interval, float) else 2 * v
            rows = max(1, len(pl_module.context.eval_rows.documents) // 2)
            message = f"{share:.0%} of the time so far ({spent:,.0f} s) went into evaluations"
            ways = f"less often (trainer.val_check_interval={rarer}) or on fewer rows (data.split.max_eval_rows={rows})"
            self._tell(trainer, Problem("much-evaluation", message, self.path, fix=f"evaluate {ways}"))

    def _tell(self, trainer: pl.Trainer, problem: Problem) -> None:
        """Once a run: what goes on for long is one finding."""
        if problem.code not in {event["code"] for event in self.events}:
            self.act(trainer, problem)

    def _window(self, trainer: pl.Trainer) -> str:
        return f"steps {trainer.global_step - 2 * self.half + 1} to {trainer.global_step}"

    def _waits(self, trainer: pl.Trainer, pl_module: Any, wait: float) -> Problem:
        workers, cores = pl_module.context.config.data.num_workers, psutil.cpu_count() or 1
        more = 2 * workers if workers else 2
        ways = [f"data.num_workers={more}"] if more < cores or not workers else []
        ways += ["rows on a nearer disk", "a format, sampler or collation of your own that is slow"]
        return Problem(
            "data-wait",
            f"{wait:.0%} of the time of {self._window(trainer)} was spent waiting for rows",
            self.path,
            fix=f"in this order: {'; '.join(ways)}",
        )

    def _slower(self, trainer: pl.Trainer, share: float) -> Problem:
        return Problem(
            "slower",
            f"{self._window(trainer)} ran at {share:.0%} of the speed that the run began with",
            self.path,
            fix="in this order: other programs on the same device (nvidia-smi, top); its clock, which heat lowers; "
            "host memory that is swapped; rows that grow along the file. resume=auto goes on elsewhere",
        )

    def _idles(self, pl_module: Any, share: float) -> Problem:
        config, settled = pl_module.context.config, pl_module.context.settled
        ways = [] if config.data.packing else ["data.packing=true"]
        if settled.accumulate > 1:
            ways.append(f"batch.per_device={2 * settled.per_device}")
        ways += [] if config.model.torch_compile else ["model.torch_compile=true"]
        if config.trainer.log_every_n_steps == 1:
            ways.append("trainer.log_every_n_steps=10")
        fix = f"in this order: {'; '.join(ways) or 'a larger model, or a smaller GPU'}"
        return Problem("gpu-idle", f"the GPU ran something in no more than {share:.0%} of the time", self.path, fix=fix)
