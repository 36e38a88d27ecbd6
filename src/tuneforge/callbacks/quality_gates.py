"""What a result must show before it is used: a list at the end of the run, each line with its number."""

from itertools import pairwise
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl

from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.callbacks.early_stopping import EarlyStopping
from tuneforge.callbacks.guard import Gate, every_guard, guards
from tuneforge.context import Context
from tuneforge.data.batches import Rows
from tuneforge.errors import Problem
from tuneforge.schema.types import PositiveInt
from tuneforge.settle import batch_is_met

ENOUGH_SAMPLES = 50
"""Answers to read before a model is used: the guides say 50 to 100."""


class QualityGates(pl.Callback):
    """Asked once, when the result is measured."""

    name: ClassVar[str] = "quality_gates"

    def __init__(self, *, action: Literal["none", "warn", "stop"] = "warn", min_batch: PositiveInt = 32) -> None:
        """`warn` shows the list; `stop` makes a failed line exit code 3. `min_batch` is in documents a step."""
        self.action = action
        self.min_batch = min_batch
        self.losses: list[float] = []
        """Eval losses of the evaluations in training, oldest first."""

    def state_dict(self) -> dict[str, Any]:
        """The losses so far."""
        return {"losses": list(self.losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them back."""
        self.losses = list(state_dict["losses"])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember how the loss went."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and "eval/loss" in trainer.callback_metrics:
            self.losses.append(float(trainer.callback_metrics["eval/loss"]))

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
            *(gate for guard in every_guard(trainer) for gate in guard.gates()),
            self._read(len(after.samples)),
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
        name, old, new = "eval loss fell steadily", before.get("eval/loss"), after.get("eval/loss")
        if old is None or new is None:
            return Gate(name, False, "not measured", "a measurement before and after")
        falls = sum(b < a for a, b in pairwise([old, *self.losses]))
        told = f", lower than the one before at {falls} of {len(self.losses)} evaluations" if self.losses else ""
        steady = new < old and 2 * falls >= len(self.losses)
        wanted = "a lower loss than the base's, and falls at half of the evaluations (optim.lr)"
        return Gate(name, steady, f"{old:.4f} -> {new:.4f}{told}", wanted)

    def _best(self, trainer: pl.Trainer) -> Gate:
        name = "best checkpoint kept"
        kept = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)  # type: ignore[attr-defined]
        if kept is None or not kept.has_best:
            return Gate(name, False, "none", "checkpoints (callbacks=default)")
        step = kept.ranked()[0]
        return Gate(name, True, f"step {step}, {kept.monitor} {kept.sign * kept.scores[step]:.4f}", "")

    def _batch(self, context: Context) -> Gate:
        documents, asked, rows = context.settled.documents_per_step, context.config.batch, context.train_rows
        name, value = "effective batch", f"{documents:.1f} documents"
        tokens = documents / rows.documents_per_row * float(rows.num_tokens.mean())
        if not batch_is_met(asked, documents, tokens):
            of_tokens = f"{asked.effective_tokens} tokens that batch.effective_tokens"
            wanted = of_tokens if asked.effective_tokens is not None else f"{asked.effective} that batch.effective"
            told = f"{tokens:,.0f} tokens, " if asked.effective_tokens is not None else ""
            return Gate(name, False, told + value, f"the {wanted} asks for (shorter sequences, or data.packing=false)")
        # Packed sequences are whole: what was asked for counts, as it is met.
        counted = asked.effective if asked.effective_tokens is None else documents
        wanted = f"{self.min_batch} or more (batch.effective={self.min_batch})"
        return Gate(name, counted >= self.min_batch, value, wanted)

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

    def _read(self, samples: int) -> Gate:
        # A matter of what was asked for, not of the result: too few samples fail nothing.
        passed = True if samples >= ENOUGH_SAMPLES else None
        wanted = f"{ENOUGH_SAMPLES} before it is used (samples.num={ENOUGH_SAMPLES}), and a person who reads them"
        return Gate("samples to read", passed, str(samples), wanted)
