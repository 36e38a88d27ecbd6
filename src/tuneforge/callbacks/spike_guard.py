"""A loss or a gradient norm far outside of what it was: said, or gone back from."""

import math
import statistics
from collections import deque
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch

from tuneforge.callbacks.guard import Late, StepGuard, agreed, steps
from tuneforge.callbacks.kept_states import KeptStates
from tuneforge.errors import Problem
from tuneforge.schema.types import PositiveFloat, PositiveInt
from tuneforge.steps import StepFacts

AS_SIGMA = 1.4826
"""Median absolute deviations of a normal distribution in one standard deviation."""
FLOOR = 0.02
"""Least deviation taken for usual, as a share of the median: a loss that hardly varies spikes at the slightest."""


class SpikeGuard(StepGuard[tuple[int, Late]]):
    """Compares each step with the ones before: robust z-score of the loss, multiple of the median gradient norm."""

    name: ClassVar[str] = "spike_guard"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop", "repair"] = "warn",
        z: PositiveFloat = 8.0,
        times: PositiveFloat = 5.0,
        window: PositiveInt = 100,
        at_least: PositiveInt = 20,
        rewind_steps: PositiveInt = 100,
        keep_every: PositiveInt = 50,
        keep_at_most_gb: PositiveFloat = 8.0,
    ) -> None:
        """A spike is a loss `z` robust deviations above the median of the last `window` steps, or either number
        `times` its median; the first `at_least` steps are not judged.

        `repair` goes back to a copy of about `rewind_steps` ago and goes on with the rows that follow, as PaLM did
        (arXiv 2204.02311, section 5.1); copies are kept in host memory every `keep_every` steps, as long as they take
        at most `keep_at_most_gb`.
        """
        super().__init__(action)
        self.z = z
        self.times = times
        self.at_least = min(at_least, window)
        self.rewind_steps = rewind_steps
        self.kept = KeptStates(keep_every, 1 + -(-rewind_steps // keep_every), keep_at_most_gb)
        self.gauges = {"loss_score": 0.0, "grad_norm_ratio": 0.0, "spikes": 0}
        self._losses: deque[float] = deque(maxlen=window)
        self._norms: deque[float] = deque(maxlen=window)
        self._inside = False
        self._keeps = False

    def state_dict(self) -> dict[str, Any]:
        """With the window."""
        return {**super().state_dict(), "losses": list(self._losses), "norms": list(self._norms)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._losses.extend(state_dict["losses"])
        self._norms.extend(state_dict["norms"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """To repair, keep the first copy."""
        if self.action != "repair":
            return
        why = self.kept.why_not(trainer, pl_module)
        self._keeps = not why
        if why:
            message = f"cannot go back after a spike: {why}; it stops the run instead"
            self.found(trainer, Problem("no-rewind", message, self.path, fix=f"set {self.path}.keep_at_most_gb"))
        else:
            self.kept.take(trainer, pl_module)

    def watch(self, facts: StepFacts, optimizer: torch.optim.Optimizer) -> None:
        """Loss and gradient norm, in one tensor."""
        self.keep((facts.step, Late(torch.stack([facts.loss.float(), facts.grad_norm.float()]))))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep a copy where one is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        due = steps(trainer, batch_idx) and trainer.global_step % self.kept.every == 0
        if due and self._keeps and not self._inside:
            self.kept.take(trainer, pl_module)

    def judge(self, trainer: pl.Trainer, pl_module: Any, seen: tuple[int, Late]) -> None:
        """Compare; the beginning of a spike is a finding, its later steps are not."""
        step, (loss, norm) = seen[0], seen[1].read()
        if not math.isfinite(loss + norm):
            return  # the nan guard's
        enough = len(self._losses) >= self.at_least
        median, norms = (statistics.median(side) if enough else 0.0 for side in (self._losses, self._norms))
        score = _score(loss, median, self._losses) if enough else 0.0
        ratio = norm / norms if norms else 0.0
        spike = agreed(trainer, enough and (score > self.z or loss > self.times * median or ratio > self.times))
        begins, self._inside = spike and not self._inside, spike
        self.gauges |= {"loss_score": score, "grad_norm_ratio": ratio}
        # Those of a spike count too: after half a window a new level is the usual one.
        self._losses.append(loss)
        self._norms.append(norm)
        if begins:
            self.gauges["spikes"] += 1
            self._act(trainer, pl_module, step, self._problem(pl_module, step, (loss, median, score), (norm, ratio)))
        elif not spike:
            self.kept.confirm(step)

    def _act(self, trainer: pl.Trainer, pl_module: Any, step: int, problem: Problem) -> None:
        if self.action != "repair":
            self.act(trainer, problem, step=step)
            return
        back = self.kept.restore(trainer, pl_module, step - self.rewind_steps)
        if back is None:
            self.stop(trainer, problem, step=step)
            return
        self._unseen.clear()
        self._inside = False
        message = (
            f"{problem.message}; weights and optimizer are those of step {back} again, the rows since are left out"
        )
        done = Problem("spike-undone", message, self.path, fix=problem.fix)
        self.found(trainer, done, step=step, did=f"went back to step {back}")

    def _problem(
        self, pl_module: Any, step: int, loss: tuple[float, float, float], norm: tuple[float, float]
    ) -> Problem:
        config = pl_module.context.config
        return Problem(
            "spike",
            f"step {step}: loss {loss[0]:.4g} (median {loss[1]:.4g}, {loss[2]:.1f} robust deviations above it), "
            f"gradient norm {norm[0]:.4g} ({norm[1]:.1f} times its median)",
            self.path,
            fix=f"likely causes, in this order: a learning rate too high (optim.lr={config.optim.lr / 2:.3g}); too "
            f"short a warm-up (scheduler.warmup_ratio={min(0.5, max(0.1, 2 * config.scheduler.warmup_ratio)):.3g}); "
            f"gradients too large (trainer.gradient_clip_val=0.3); odd rows. {self.path}.action=repair goes back",
        )


def _score(value: float, median: float, values: deque[float]) -> float:
    """How far above the median, in robust standard deviations."""
    usual = AS_SIGMA * statistics.median(abs(v - median) for v in values)
    return (value - median) / max(usual, FLOOR * abs(median), 1e-12)
