"""No step is taken with a loss or gradients that are not finite; a run of them goes back to a sound state."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.distributed.tensor import DTensor

from tuneforge.artifacts.folder import append_text, write_text
from tuneforge.artifacts.kept import read_lines
from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.callbacks.guard import Late, StepGuard, agreed, any_process, steps
from tuneforge.callbacks.kept_states import KeptStates, scale_rate
from tuneforge.compat import is_4bit
from tuneforge.errors import Problem, RefusedError
from tuneforge.masking import masked_texts
from tuneforge.method import Method
from tuneforge.schema import Config
from tuneforge.schema.types import Count, PositiveFloat, PositiveInt
from tuneforge.sharding import ClippingInStep
from tuneforge.steps import StepFacts

BAD_BATCHES = "bad_batches.jsonl"
LOWEST_SCALE = 1.0
"""fp16's loss scale under which overflowing gradients are no matter of scaling any more."""


@dataclass
class _Step:
    step: int
    numbers: Late
    """1 where the step is not finite on any process, else 0; the loss; the gradient norm."""
    losses: list[Tensor] = field(default_factory=list)
    """Of this process's micro-batches."""


class NanGuard(StepGuard[_Step]):
    """Skips steps that are not finite, on the device; after several in a row it rewinds and halves the rate."""

    name: ClassVar[str] = "nan_guard"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop", "repair"] = "repair",
        in_a_row: PositiveInt = 3,
        rewinds: Count = 3,
        keep_every: PositiveInt = 50,
        keep_at_most_gb: PositiveFloat = 8.0,
    ) -> None:
        """With `warn` and `stop` a step is skipped just the same; `stop` ends the run at the first.

        `repair` goes back to the last sound state, of every `keep_every` steps, after `in_a_row` of them, and stops the
        run when that has happened `rewinds` times. Copies that would take more than `keep_at_most_gb` of host
        memory are not kept, and the run stops instead.
        """
        super().__init__(action)
        self.in_a_row = in_a_row
        self.rewinds = rewinds
        self.kept = KeptStates(keep_every, 1, keep_at_most_gb)
        self.gauges = {"skipped": 0, "rewinds": 0}
        self._why_none = ""
        self._streak = 0
        self._losses: list[Tensor] = []
        self._skips = True
        self._scaler: torch.amp.GradScaler | None = None
        self._method_reads_gradients = False

    def state_dict(self) -> dict[str, Any]:
        """The steps in a row so far, too; a copy is taken anew from the checkpoint."""
        return {**super().state_dict(), "streak": self._streak}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._streak = int(state_dict["streak"])

    @property
    def hurried(self) -> bool:
        """After a bad step the next is looked at as it ends."""
        return self._streak > 0

    # ---- on the device

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Look at the weights once, and keep the first copy.

        Raises:
            RefusedError: weights are not finite before the first step.
        """
        if not self.on:
            return
        self._cut(pl_module.context.folder.root / BAD_BATCHES, trainer.global_step)
        broken = not_finite(pl_module)
        if agreed(trainer, bool(broken)):
            problem = Problem(
                "weights-not-finite",
                f"{len(broken)} of the model's tensors hold NaN or infinite numbers before the first step: "
                f"{', '.join(broken[:3])}",
                "model.path",
                fix="likely causes, in this order: a damaged download; weights saved by a run that diverged; "
                "model.dtype=float16 for weights that need bfloat16's range. Fetch them again, or start from another",
            )
            if self.action != "warn":
                raise RefusedError.of([problem])
            self.found(trainer, problem)
        if self.action == "repair":
            self._why_none = self.kept.why_not(trainer, pl_module)
            if not self._why_none:
                self.kept.take(trainer, pl_module)

    @rank_zero_only
    def _cut(self, path: Path, step: int) -> None:
        """A resumed run does the later steps again."""
        if path.exists():
            kept = [line for line in read_lines(path, {"step": int}) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept))

    def watch(self, facts: StepFacts, optimizer: torch.optim.Optimizer) -> None:
        """Flag the step, and take its effect away where the flag is up; the host does not look."""
        # An engine that clips within its step has taken it already.
        finite = torch.isfinite(facts.loss) & torch.isfinite(facts.grad_norm)
        bad = any_process(self._trainer, torch.logical_not(finite).float())
        if self._skips:
            self._hold(optimizer, bad)
        numbers = Late(torch.stack([bad, facts.loss.float(), facts.grad_norm.float()]))
        self.keep(_Step(facts.step, numbers, self._losses))
        self._losses = []

    def _hold(self, optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self._honours_a_flag(optimizer, parameters):
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        if not self._honours_a_flag(optimizer, parameters) or self._method_reads_gradients:
            # Momentum still moves the weights: the most that can be held back without asking the device.
            for p in parameters:
                gradient = p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad
                gradient.masked_fill_(bad.bool().to(gradient.device), 0.0)

    def _honours_a_flag(self, optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter]) -> bool:
        """torch's fused optimizers skip a step by a number on the device; a gradient scaler sets that number itself."""
        fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        return fused and self._scaler is None and not any(isinstance(p, DTensor) for p in parameters)

    # ---- on the host

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Know what gradients pass through."""
        super().on_fit_start(trainer, pl_module)
        precision = trainer.precision_plugin
        self._trainer = trainer
        self._skips = not isinstance(trainer.strategy, ClippingInStep)
        self._scaler = precision.scaler if isinstance(precision, MixedPrecision) else None
        self._method_reads_gradients = type(pl_module.context.method).on_step_end is not Method.on_step_end

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the micro-batch's loss; after a step, keep a copy where one is due."""
        last = self.on and steps(trainer, batch_idx)
        (self._unseen[-1].losses if last and self._skips else self._losses).append(outputs["loss"])
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        due = last and self.action == "repair" and trainer.global_step % self.kept.every == 0
        if due and not self._why_none and not self._streak:
            self.kept.take(trainer, pl_module)

    def judge(self, trainer: pl.Trainer, pl_module: Any, seen: _Step) -> None:
        """Nothing where the step was sound; else it is written down, and a run of them acted on."""
        bad, loss, norm = seen.numbers.read()
        if not bad:
            self._streak = 0
            self.kept.confirm(seen.step)
            return
        if self._is_scaling(loss):
            return
        self._streak += 1
        self.gauges["skipped"] += 1
        line = self._bad_batch(trainer, pl_module, seen) | {"loss": loss, "grad_norm": norm}
        if trainer.is_global_zero:
            text = json.dumps(masked_texts(line), ensure_ascii=False)
            append_text(pl_module.context.folder.root / BAD_BATCHES, text + "\n")
        problem = self._problem(pl_module.context.config, line)
        if self.action == "stop" or (self.action == "repair" and not self._skips):
            self.stop(trainer, problem, step=seen.step)
        elif self.action == "repair" and self._streak >= self.in_a_row and self.refusal is None:
            self._repair(trainer, pl_module, problem, seen.step)
        else:
            self.found(trainer, problem, step=seen.step, did="skipped the step")

    def _is_scaling(self, loss: float) -> bool:
        """Whether fp16's scaler has merely tried too large a scale, as it does every so often."""
        return self._scaler is not None and math.isfinite(loss) and self._scaler.get_scale() >= LOWEST_SCALE

    def _repair(self, trainer: pl.Trainer, pl_module: Any, problem: Problem, step: int) -> None:
        spent = self.gauges["rewinds"] >= self.rewinds
        back = self.kept.restore(trainer, pl_module, step)
        if spent or back is None:
            why = self._why_none or ("no sound step came before" if back is None else f"{self.rewinds} times it did")
            message = f"{problem.message}; {self._streak} steps in a row, and going back is no help: {why}"
            self.stop(trainer, Problem("not-finite-again", message, self.path, fix=problem.fix), step=step)
            return
        self._streak = 0
        self.gauges["rewinds"] += 1
        rate = scale_rate(trainer, 0.5)
        self.kept.take(trainer, pl_module)
        message = (
            f"{self.in_a_row} steps in a row up to step {step} were not finite: weights and optimizer are those of "
            f"step {back} again, the rows since are left out, and the learning rate is halved to {rate:.3g}"
        )
        rewound = Problem("rewound", message, self.path, fix=problem.fix)
        self.found(trainer, rewound, step=step, did=f"went back to step {back}")

    def _problem(self, config: Config, line: Mapping[str, Any]) -> Problem:
        named = ", ".join(line["documents"][:3]) + (" ..." if len(line["documents"]) > 3 else "")
        return Problem(
            "not-finite",
            f"step {line['step']} had a loss of {line['loss']:.4g} and a gradient norm of {line['grad_norm']:.4g}"
            f"{': it is skipped' if self._skips else ''}, and its rows ({named}) are in {BAD_BATCHES}",
            self.path,
            fix=f"likely causes, in this order: empty or extreme rows among them; a learning rate too high "
            f"(optim.lr={config.optim.lr / 2:.3g}); fp16 (trainer.precision=bf16-mixed); "
            "gradients too large (trainer.gradient_clip_val=0.3, or a lower method.lora_alpha)",
        )

    def _bad_batch(self, trainer: pl.Trainer, pl_module: Any, seen: _Step) -> dict[str, Any]:
        """Each micro-batch's loss, and the rows and documents of those that are not finite. Called by all processes."""
        context = pl_module.context
        settled = context.settled
        losses = torch.stack(seen.losses).float()
        if trainer.world_size > 1:
            gathered = [torch.empty_like(losses) for _ in range(trainer.world_size)]
            torch.distributed.all_gather(gathered, losses)
            # One of each group of processes that read the same rows.
            losses = torch.stack(gathered[:: context.machine.tensor_parallel_size], 1)
        losses = losses.cpu().reshape(settled.accumulate, settled.world_size)
        micro_batches = context.sampler(rank=0).micro_batches(seen.step - 1)
        broken = torch.logical_not(torch.isfinite(losses)).flatten().tolist()
        # With finite losses and non-finite gradients, any row may be the cause.
        suspects = [m for m, bad in zip(micro_batches, broken, strict=True) if bad or not any(broken)]
        chosen = [int(row) for micro_batch in suspects for row in micro_batch]
        return {
            "step": seen.step,
            "micro_batches": losses.tolist(),
            "rows": chosen,
            "documents": [context.train_rows.documents[i].origin for r in chosen for i in context.train_rows.rows[r]],
        }

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Weights that are not finite, or that give no finite loss, never leave a run.

        Raises:
            RefusedError: they are, and there is neither a copy nor a checkpoint to go back to.
        """
        super().on_train_end(trainer, pl_module)
        (optimizer,) = trainer.optimizers
        if "found_inf" in vars(optimizer):
            del optimizer.found_inf  # type: ignore[attr-defined]
        wrong = self._wrong_at_the_end(trainer, pl_module) if self.on else ""
        if not wrong:
            return
        back = self.kept.restore(trainer, pl_module, trainer.global_step)
        problem = Problem(
            "diverged",
            wrong + (f"; the weights of step {back} are back" if back is not None else ""),
            self.path,
            fix=f"lower the learning rate: optim.lr={pl_module.context.config.optim.lr / 2:.3g}",
        )
        if back is None and not any(c.has_best for c in trainer.callbacks if isinstance(c, Checkpoints)):  # type: ignore[attr-defined]
            raise RefusedError.of([problem])
        if self.refusal is None:
            self.stop(trainer, problem)

    def _wrong_at_the_end(self, trainer: pl.Trainer, pl_module: Any) -> str:
        if agreed(trainer, bool(not_finite(pl_module, trained=True))):
            return "the last step left weights that are not finite"
        loss = float(trainer.callback_metrics.get("eval/loss", 0.0))
        return "" if math.isfinite(loss) else f"the last evaluation had a loss of {loss}"


def not_finite(pl_module: Any, *, trained: bool = False) -> list[str]:
    """Names of parameters (of the trained ones alone) that hold NaN or infinite numbers, on this process."""
    # Packed 4-bit numbers are stored in a floating type, and as such they are anything.
    packed = {module.weight for module in pl_module.modules() if is_4bit(module)}
    named = [
        (name, p.to_local() if isinstance(p, DTensor) else p)
        for name, p in pl_module.named_parameters()
        if p.is_floating_point() and p not in packed and (p.requires_grad or not trained)
    ]
    flags = [torch.isfinite(p.detach()).all() for _, p in named]
    fine = torch.stack([flag.to(pl_module.device) for flag in flags]).tolist()
    return [name for (name, _), sound in zip(named, fine, strict=True) if not sound]
