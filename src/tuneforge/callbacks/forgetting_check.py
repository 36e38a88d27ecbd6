"""What the base could do, asked again along the run: said, held on to, or the end of the run."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import numpy as np
import torch

from tuneforge.callbacks.beside import Pace, evaluating
from tuneforge.callbacks.guard import Gate, Guard, Table, steps
from tuneforge.callbacks.kept_states import scale_rate
from tuneforge.console import warn
from tuneforge.data.batches import EvalSampler, Rows
from tuneforge.data.encode import Document
from tuneforge.data.scored import Fall, Numbers, ScoredTask, read_tasks
from tuneforge.errors import Problem
from tuneforge.schema.data import ScoredRows
from tuneforge.schema.types import Count, Fraction, LocalPath, PositiveInt


class ForgettingCheck(Guard):
    """Scores tasks before training and along it, and compares each with its own score before."""

    name: ClassVar[str] = "forgetting_check"

    def __init__(
        self,
        *,
        action: Literal["none", "warn", "stop", "repair"] = "warn",
        tasks: dict[str, LocalPath | ScoredRows] | None = None,
        tolerance: Fraction = 0.05,
        every_n_steps: PositiveInt | None = None,
        max_share: Fraction = 0.05,
        min_steps: Count = 100,
        repairs: PositiveInt = 3,
    ) -> None:
        """A finding is a score more than `tolerance` of the base's below it, and further than chance explains.

        `tasks` are files, or nodes as in the group `data`; null: what `model=tiny` knows, and nothing for other models.
        Scores are taken at evaluations, or every `every_n_steps` steps, as long as that takes at most `max_share` of
        training's time (1: no limit); before and after training always. A run of fewer than `min_steps` steps is left
        alone unless tasks or another action than `warn` are given.

        `stop` never keeps weights with a finding as the best. `repair` halves the learning rate and doubles
        `regularise.ewc` and `regularise.kl` where they are on; after `repairs` times that did not help, the run stops.
        """
        super().__init__(action)
        self.tasks: dict[str, Any] = dict(tasks or {})
        """As the config has them: nodes are mappings."""
        self.tolerance = tolerance
        self.every_n_steps = every_n_steps
        self.min_steps = min_steps
        self.repairs = repairs
        self.pace = Pace(max_share)
        self._scored: list[ScoredTask] = []
        self._base: dict[str, dict[str, Any]] = {}
        """Task -> digest of its rows, and what counted of each item before training."""
        self._falls: dict[str, Fall] = {}
        """At the last look."""
        self.result: dict[str, Fall] = {}
        """Of the weights that the run leaves."""
        self._repaired: list[float] = []
        """The largest fall at each repair."""
        self._resumed = False

    def state_dict(self) -> dict[str, Any]:
        """With the base's scores: a resumed run has no base to ask."""
        return {**super().state_dict(), "base": self._base, "pace": self.pace.state(), "repaired": self._repaired}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        super().load_state_dict(state_dict)
        self._base, self._repaired = dict(state_dict["base"]), list(state_dict["repaired"])
        self.pace.load_state(state_dict["pace"])
        self._resumed = True

    def as_record(self) -> dict[str, Any]:
        """With the scores of each task, and the share of training's time."""
        record = super().as_record()
        if self.idle:
            return record | {"idle": self.idle}
        told = {task.name: self._told(task) for task in self._scored if task.name in self._base}
        return record | {"tolerance": self.tolerance, "time_share": self.pace.share, "tasks": told}

    @property
    def of_result(self) -> dict[str, float]:
        """The largest fall of a task, as a share of the base's score; below 0 where all have gained."""
        return {"worst_fall": max(fall.share for fall in self.result.values())} if self.result else {}

    def gates(self) -> list[Gate]:
        """Whether the result has kept what the base could do."""
        name = f"forgetting within {self.tolerance:.0%}"
        if not self.result:
            return [Gate(name, None, f"not measured: {self.idle or 'off'}", "")]
        task, fall = max(self.result.items(), key=lambda item: item[1].share)
        value = f"worst of {len(self.result)}: {task} {fall.base:.4f} -> {fall.now:.4f} ({-fall.share:+.1%})"
        if self.tolerance < fall.share <= fall.noise:
            value += f", which chance explains (up to {fall.noise:.1%})"
        return [Gate(name, not self.fallen(self.result), value, "what the finding says")]

    def tables(self) -> list[Table]:
        """Each task's scores."""
        shown = {task.name: self._told(task) for task in self._scored if task.name in self._base}
        if not shown:
            return []
        numbers = ["rows", "base", "last check", "result", "change", "by chance"]
        rows = []
        for name, told in shown.items():
            scores = ["" if told[at] is None else f"{told[at]:.4f}" for at in ("base", "last", "after")]
            change = (
                ["", ""] if told["fall"] is None else [f"{-100 * told['fall']:+.1f} %", f"{100 * told['noise']:.1f} %"]
            )
            metric = {"likelihood": "likelihood of a token"}.get(told["metric"], told["metric"])
            rows.append([name, metric, f"{told['rows']:,}", *scores, *change])
        return [Table("What the base could do", ["task", "score", *numbers], rows, numbers)]

    def _told(self, task: ScoredTask) -> dict[str, Any]:
        base = task.score(np.asarray(self._base[task.name]["items"]))
        shown: dict[str, Any] = {"metric": task.metric, "rows": task.num_items, "base": base}
        for moment, falls in (("last", self._falls), ("after", self.result)):
            fall = falls.get(task.name)
            shown |= {moment: fall.now if fall else None}
        fall = self.result.get(task.name) or self._falls.get(task.name)
        return shown | {"fall": fall.share if fall else None, "noise": fall.noise if fall else None}

    # ---- what is asked

    def setup(self, trainer: pl.Trainer, pl_module: Any, stage: str) -> None:
        """Read the tasks, before any weight is read.

        Raises:
            TuneforgeError: rows that cannot be used.
        """
        if not self.on or self._scored:
            return
        context = pl_module.context
        bundled = context.config.model.path == "bundled:tiny"
        if not pl_module.predicts_tokens:
            self.idle = "the objective predicts no tokens"
        elif not self.tasks and not bundled:
            self.idle = f"no tasks ({self.path}.tasks)"
        elif not self.tasks and self.action == "warn" and context.settled.num_steps < self.min_steps:
            self.idle = f"fewer than {self.min_steps} steps ({self.path}.min_steps)"
        else:
            self._scored = read_tasks(
                self.tasks,
                context.tokenizer,
                max_length=context.settled.max_length,
                seed=context.config.seed,
                path=f"{self.path}.tasks",
            )

    # ---- when

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score the base; a resumed run has its scores, and holds on to what was repaired."""
        if not self.on:
            return
        if trainer.global_step == 0 and not self._base:
            items = self._measure(trainer, pl_module)
            self._base = {t.name: {"digest": t.digest, "items": items[t.name].tolist()} for t in self._scored}
            self.gauges |= {t.name: t.score(items[t.name]) for t in self._scored}
        self._leave_out()
        if self._resumed and self._repaired:
            pl_module.hold_nearer(2.0 ** len(self._repaired))
        self._resumed = False
        self.pace.start()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Score the model as it is; after training, the weights that the run leaves."""
        if not self.on or not self._base:
            return
        if trainer.state.fn != "fit":
            self.result = self._compared(self._measure(trainer, pl_module))
            if self.refusal is None and trainer.global_step not in {e["step"] for e in self.events}:
                self._say(trainer, self.result)
        elif self.every_n_steps is None:
            self._look(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After an optimizer step: look where that was asked for."""
        every = self.every_n_steps
        if self.on and every and steps(trainer, batch_idx) and trainer.global_step % every == 0:
            self._look(trainer, pl_module)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Time ends."""
        self.pace.stop()

    # ---- what is seen

    def _look(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.refusal is not None or not self.pace.affords(trainer):
            return
        self._falls = self._compared(self._measure(trainer, pl_module))
        self.gauges |= {name: fall.now for name, fall in self._falls.items()} | {"time_share": self.pace.share}
        if self.action == "repair" and self.fallen(self._falls):
            self._repair(trainer, pl_module)
        else:
            self._say(trainer, self._falls)
        self.disowns = self.refusal is not None

    def _measure(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Numbers]:
        """Task -> what counts of each item; every process scores its share of the rows, and has all the numbers."""
        with self.pace.timed(), evaluating(trainer, pl_module):
            sums = self._sums(trainer, pl_module, [d for task in self._scored for d in task.documents])
        ends = np.cumsum([len(task.documents) for task in self._scored])
        return {t.name: t.items(part) for t, part in zip(self._scored, np.split(sums, ends[:-1]), strict=True)}

    def _sums(self, trainer: pl.Trainer, pl_module: Any, documents: list[Document]) -> Numbers:
        """Each document's summed log-likelihood, [documents]."""
        context = pl_module.context
        settled, config = context.settled, context.config
        rows = Rows(documents, settled.max_length, config.data.packing)
        collate, machine = context.collate(), context.machine
        # As many tokens as a pass in training, and labels, each with a row of logits, on at most a quarter of them.
        places = settled.per_device * settled.max_length
        per_pass = max(1, places // int(max(rows.num_tokens.max(), 4 * rows.num_labels.max())))
        # The processes of a tensor-parallel group compute a row together: all of them must pass the same rows.
        sampler = EvalSampler(len(rows), per_pass, machine.data_parallel_size, machine.data_parallel_rank)
        sums = np.zeros(len(documents))
        for indices in sampler:
            batch: Any = collate([rows[index] for index in indices])
            found = pl_module.log_likelihoods({k: v.to(pl_module.device) for k, v in batch.items()})
            owners = [i for index in indices if index != Rows.EMPTY for i in rows.rows[index]]
            of_each = np.repeat(np.array(owners, int), [documents[i].num_labels for i in owners])
            np.add.at(sums, of_each, found.cpu().double().numpy())
        if machine.rank % machine.tensor_parallel_size:
            sums[:] = 0.0  # the first process of the group counts its rows
        if trainer.world_size > 1:
            total = torch.from_numpy(sums).to(trainer.strategy.root_device)
            torch.distributed.all_reduce(total)
            sums = total.cpu().numpy()
        return sums

    def _compared(self, items: Mapping[str, Numbers]) -> dict[str, Fall]:
        known = [task for task in self._scored if task.name in self._base]
        return {t.name: t.compare(np.asarray(self._base[t.name]["items"]), items[t.name]) for t in known}

    def fallen(self, falls: Mapping[str, Fall]) -> dict[str, Fall]:
        """Those that are a finding, the furthest first."""
        found = {name: fall for name, fall in falls.items() if fall.beyond(self.tolerance)}
        return dict(sorted(found.items(), key=lambda item: -item[1].share))

    def _leave_out(self) -> None:
        """After a resume: tasks that the base was not scored on."""
        strange = [t.name for t in self._scored if self._base.get(t.name, {}).get("digest") != t.digest]
        if not strange:
            return
        message = f"the base was not scored on these rows before training: {', '.join(strange)}; they are left out"
        fix = "resume with the tasks of the run, or start anew"
        warn(Problem("no-baseline", message, f"{self.path}.tasks", fix=fix))
        self._scored = [task for task in self._scored if task.name not in strange]
        if not self._scored:
            self.idle = "the base was not scored before training began"

    # ---- what is done

    def _say(self, trainer: pl.Trainer, falls: Mapping[str, Fall]) -> None:
        if self.fallen(falls):
            (self.stop if self.action == "stop" else self.found)(trainer, self._problem(trainer, falls))

    def _repair(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """At a fall further than at the last repair: a lower rate, and a stronger hold where there is one."""
        worst = next(iter(self.fallen(self._falls).values())).share
        if worst <= max(self._repaired, default=0.0):
            return
        problem = self._problem(trainer, self._falls)
        if len(self._repaired) >= self.repairs:
            message = f"{problem.message}; {self.repairs} repairs have not held it"
            self.stop(trainer, Problem("forgetting-again", message, self.path, fix=problem.fix))
            return
        self._repaired.append(worst)
        rate = scale_rate(trainer, 0.5)
        held = pl_module.hold_nearer(2.0)
        did = f"halved the learning rate to {rate:.3g}" + (f", set {' and '.join(held)}" if held else "")
        message = f"{problem.message}: {did}" + (
            "" if held else "; no term of the loss holds the model near its base (regularise.kl, regularise.ewc)"
        )
        self.found(trainer, Problem("forgetting-repaired", message, self.path, fix=problem.fix), did=did)

    def _problem(self, trainer: pl.Trainer, falls: Mapping[str, Fall]) -> Problem:
        found = self.fallen(falls)
        metrics = {task.name: task.metric for task in self._scored}
        told = "; ".join(
            f"{name} ({metrics[name]}) {fall.base:.4g} -> {fall.now:.4g} ({-fall.share:+.1%})"
            for name, fall in found.items()
        )
        module: Any = trainer.lightning_module
        config = module.context.config
        return Problem(
            "forgetting",
            f"step {trainer.global_step}: {len(found)} of {len(falls)} tasks are more than {self.tolerance:.0%} below "
            f"the untouched base: {told}",
            self.path,
            fix=f"in this order: a lower rate (optim.lr={config.optim.lr / 2:.3g}); general rows among the train rows "
            "(data.replay.fraction=0.2); regularise.kl=0.1, or regularise.ewc=1e3; fewer epochs; an adapter instead of "
            "method=full",
        )
