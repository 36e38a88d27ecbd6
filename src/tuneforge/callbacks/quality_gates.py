"""What a result must show before it is used: a list at the end of the run, each line with its number."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl

from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.callbacks.early_stopping import EarlyStopping
from tuneforge.callbacks.forgetting_check import ForgettingCheck
from tuneforge.callbacks.guard import guards
from tuneforge.callbacks.waste_guard import WasteGuard
from tuneforge.context import Context
from tuneforge.data.batches import Rows
from tuneforge.errors import Problem
from tuneforge.schema.types import PositiveInt


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


class QualityGates(pl.Callback):
    """Asked once, when the result is measured."""

    name: ClassVar[str] = "quality_gates"

    def __init__(self, *, action: Literal["none", "warn", "stop"] = "warn", min_batch: PositiveInt = 32) -> None:
        """`warn` shows the list; `stop` makes a failed line exit code 3. `min_batch` is in documents a step."""
        self.action = action
        self.min_batch = min_batch

    def ask(self, trainer: pl.Trainer, context: Context, before: Any, after: Any) -> list[Gate]:
        """Every gate; `before` and `after` are what was measured of the base and of the result."""
        if self.action == "none":
            return []
        return [
            self._fell(before.metrics, after.metrics),
            self._best(trainer),
            self._batch(context),
            self._leak(context.train_rows, context.eval_rows),
            self._compared(before.metrics, len(context.eval_rows.documents)),
            self._quiet(trainer),
            self._kept(trainer),
            self._read(len(after.samples)),
            *self._used(trainer),
        ]

    def refusal(self, gates: list[Gate]) -> Problem | None:
        """Why the result is refused, with `stop`."""
        failed = [g for g in gates if g.passed is False]
        if self.action != "stop" or not failed:
            return None
        message = "; ".join(f"{g.name}: {g.value}" for g in failed)
        fix = "; ".join(g.wanted for g in failed)
        return Problem("gates-failed", message, f"callbacks.{self.name}", fix=fix)

    def _fell(self, before: dict[str, float], after: dict[str, float]) -> Gate:
        old, new = before.get("eval/loss"), after.get("eval/loss")
        if old is None or new is None:
            return Gate("eval loss fell", False, "not measured", "a measurement before and after")
        return Gate("eval loss fell", new < old, f"{old:.4f} -> {new:.4f}", "a lower loss than the base's")

    def _best(self, trainer: pl.Trainer) -> Gate:
        name = "best checkpoint kept"
        kept = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
        if kept is None or not kept.has_best:
            return Gate(name, False, "none", "checkpoints (callbacks=default)")
        step = kept.ranked()[0]
        return Gate(name, True, f"step {step}, {kept.monitor} {kept.sign * kept.scores[step]:.4f}", "")

    def _batch(self, context: Context) -> Gate:
        documents = context.settled.documents_per_step
        # Packed rows are whole: the batch that is asked for is met to half a row.
        slack = context.train_rows.documents_per_row / 2
        wanted = f"{self.min_batch} or more (batch.effective={self.min_batch})"
        return Gate("effective batch", documents >= self.min_batch - slack, f"{documents:.1f} documents", wanted)

    def _leak(self, train: Rows, held: Rows) -> Gate:
        seen = {d.input_ids.tobytes() for d in train.documents}
        shared = sum(d.input_ids.tobytes() in seen for d in held.documents)
        value = f"{shared} of {len(held.documents)} eval documents are in the train rows"
        return Gate(
            "no eval row in train", shared == 0, value, "other rows to hold out (data.split.by, data.split.eval_path)"
        )

    def _compared(self, before: dict[str, float], rows: int) -> Gate:
        done = "eval/loss" in before
        value = f"on the same {rows} documents" if done else "not measured"
        return Gate("compared with the base", done, value, "a measurement of the base")

    def _quiet(self, trainer: pl.Trainer) -> Gate:
        found = {g.name: g.count for g in guards(trainer).values() if not isinstance(g, EarlyStopping)}
        loud = ", ".join(f"{name} {count}" for name, count in found.items() if count)
        return Gate("no guard found anything", not loud, loud or f"{len(found)} guards", "what their messages say")

    def _kept(self, trainer: pl.Trainer) -> Gate:
        check = next((c for c in trainer.callbacks if isinstance(c, ForgettingCheck)), None)  # type: ignore[attr-defined]
        name = f"forgetting within {check.tolerance if check else 0.05:.0%}"
        if check is None or not check.result:
            why = check.idle if check and check.idle else "off"
            return Gate(name, None, f"not measured: {why}", "")
        task, fall = max(check.result.items(), key=lambda item: item[1].share)
        passed = not check.fallen(check.result)
        value = f"worst of {len(check.result)}: {task} {fall.base:.4f} -> {fall.now:.4f} ({-fall.share:+.1%})"
        return Gate(name, passed, value, "what the finding says")

    def _read(self, samples: int) -> Gate:
        return Gate("samples to read", samples > 0, str(samples), "samples.num=3, and a person who reads them")

    def _used(self, trainer: pl.Trainer) -> list[Gate]:
        """Where there is a GPU whose driver tells."""
        watching = [g for g in guards(trainer).values() if isinstance(g, WasteGuard)]
        use = watching[0].use() if watching else {}
        if "gpu_utilisation" not in use:
            return []
        busy, least = use["gpu_utilisation"], watching[0].min_use
        value = f"the GPU was busy for {busy:.0%} of the time, with at most {use['gpu_memory']:.0%} of its memory"
        return [Gate("utilisation", busy >= least, value, f"{least:.0%} or more; what waste_guard says, if it does")]
