"""run.json, config.yaml and provenance.json: what ran, on what, with what result; and the closing summary."""

import datetime
import os
import signal
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.loggers import Logger

from tuneforge.artifacts.folder import read_metrics, release_reserve, reserve, write_json, write_text
from tuneforge.artifacts.kept import damaged, read_record
from tuneforge.artifacts.loggers import RunLogger
from tuneforge.artifacts.report import write_report
from tuneforge.build import facts
from tuneforge.callbacks.guard import Gate, Guard, refusal
from tuneforge.callbacks.quality_gates import QualityGates
from tuneforge.callbacks.signals import requeued
from tuneforge.compose import PLACES, Composed
from tuneforge.console import say, warn
from tuneforge.context import Context
from tuneforge.data.labelled import LabelledRows
from tuneforge.data.rendering import written_day
from tuneforge.data.source import Source
from tuneforge.errors import EXIT_OF, EXIT_OK, EXIT_REFUSED, TuneforgeError, print_problems
from tuneforge.finish import Measured
from tuneforge.git_state import git_commit
from tuneforge.inert import set_by_user
from tuneforge.interpolation import leaves
from tuneforge.machine import is_present
from tuneforge.masking import masked_texts
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.plan.speed import efficiency, flops_per_token
from tuneforge.provenance import masked_origin
from tuneforge.resume import identity
from tuneforge.sharding import num_weights
from tuneforge.shell import again, command, key_of, setting, typed
from tuneforge.versions import versions
from tuneforge.vocabulary import digests
from tuneforge.world import is_main_process

WORDS = {True: "pass", False: "FAIL", None: "open"}
"""Of a gate's line."""
_TOKENS = ("train/tokens_per_s", "supervised tokens")
_EXAMPLES = ("train/examples_per_s", "texts")


@dataclass
class Record:
    """Grows while the run goes on; every state of it that reaches the disk is whole."""

    composed: Composed
    context: Context
    data: dict[str, Any]
    started: str
    before: Measured = field(default_factory=Measured)
    after: Measured = field(default_factory=Measured)
    parameters: dict[str, int] = field(default_factory=dict)
    clock: float = field(default_factory=time.perf_counter)
    gates: list[Gate] = field(default_factory=list)
    watched: dict[str, Guard] = field(default_factory=dict)
    """The guards that watched, by name."""
    loggers: Sequence[Logger] = ()
    """Those of the trainer."""
    begun: bool = False
    """There is a run.json on the disk."""

    @classmethod
    def of(cls, composed: Composed, context: Context, rows: Source, *, resumed: bool) -> "Record":
        """A new record, or that of the run folder when it is resumed."""
        data: dict[str, Any] = {
            "name": composed.choices.get("data"),
            "format": rows.format,
            "rows": rows.num_rows,
            "sha256": rows.digest,
            "digests": rows.digests,
            "tokenised_by": digests(context.tokenizer),
            "replayed": rows.num_replayed,
            "skipped": rows.skipped,
            "metadata_columns": list(rows.metadata),
            "unread": dict(rows.unread),
            "train_documents": len(context.train_rows.documents),
            "eval_documents": len(context.eval_rows.documents),
            "train_rows": len(context.train_rows),
        }
        if day := written_day(context.tokenizer):
            data["day"] = day.isoformat(timespec="seconds")
        if isinstance(context.train_rows, LabelledRows):
            labels = context.train_rows.labels
            data |= {"labels": list(labels.names), "multi_label": labels.multi}
        record = cls(composed, context, data, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
        if resumed:
            old = read_record(context.folder.root)
            record.started = old["started"]
            record.before = Measured(old["metrics"]["before"], old["samples"]["before"], old["classes"]["before"])
            record.parameters = old["parameters"]
            record.begun = True
        return record

    def begin(self, trainer: pl.Trainer, module: Any) -> None:
        """Write what is known before training; from here on the run can be resumed."""
        self._describe()
        for logger in self.loggers:
            logger.log_metrics(self.before.metrics, step=0)
        self.parameters = {
            "total": num_weights(module.model),
            "trainable": num_weights(module.model, trained=True),
        }
        settled = self.context.settled
        if is_main_process():
            tree = self.composed.recorded
            write_text(self.context.folder.root / "config.yaml", yaml.safe_dump(tree, sort_keys=False))
            write_json(self.context.folder.root / "provenance.json", self._provenance())
            reserve(self.context.folder.root)
            self._write("running")
        self.begun = True
        say(
            f"training {self.parameters['trainable']:,} of {self.parameters['total']:,} parameters in "
            f"{settled.precision}: {settled.num_steps} steps of {settled.documents_per_step:.0f} documents "
            f"({settled.per_device} rows x {settled.accumulate} x {settled.world_size}"
            f"{'' if self._classifies else f', {settled.label_tokens_per_step:.0f} supervised tokens'}); "
            f"eval loss of the base {self.before.metrics['eval/loss']:.4f}"
        )

    def interrupted(self, number: int) -> int:
        """Write that the run stopped on a signal; returns the exit code. After SIGUSR1, SLURM starts the job again."""
        code = EXIT_OF[signal.Signals(number)]
        root = self.context.folder.root
        self._write_end("interrupted", code)
        go_on = f"stopped; go on with the same command and {typed('resume', root)}"
        say(go_on if self.begun else "stopped before training")
        if number == signal.SIGUSR1 and is_main_process() and requeued():
            say(f"SLURM job {os.environ['SLURM_JOB_ID']} is queued again")
            code = EXIT_OK
            self._write_end("interrupted", code)
        return code

    def failed(self, code: int) -> None:
        """Write what the run is about to exit with."""
        known = {EXIT_REFUSED: "refused", **dict.fromkeys(EXIT_OF.values(), "interrupted")}
        self._write_end(known.get(code, "failed"), code)

    def pruned(self) -> int:
        """Write that a sweep's pruner ended the run: it has no result, and that is no failure."""
        self._write_end("pruned", EXIT_OK)
        return EXIT_OK

    def go_on(self) -> None:
        """Write that the run of this record is running again."""
        self._describe()
        if is_main_process():
            reserve(self.context.folder.root)
            self._write("running")

    def _write_end(self, status: str, code: int) -> None:
        if is_main_process():
            release_reserve(self.context.folder.root)
        try:
            if self.begun and is_main_process():
                self._write(status, code)
            self._end_loggers(status)
        except OSError as error:  # what ended the run is what its user must hear of
            warn(f"the run's end could not be written down: {error.filename or 'a logger'}: {error.strerror}")

    def _describe(self) -> None:
        """Tell the loggers what runs."""
        for logger in self.loggers:
            logger.log_hyperparams(leaves(self.composed.recorded))

    def _end_loggers(self, status: str) -> None:
        step = max((m["step"] for m in read_metrics(self.context.folder.metrics)), default=0)
        for logger in self.loggers:
            if isinstance(logger, RunLogger):
                logger.log_texts(masked_texts(self._texts()), step)
                logger.end(status, self._chosen(), self.after.metrics, step)

    def _texts(self) -> dict[str, str]:
        """Samples and gates in Markdown, for loggers that show text."""
        texts = {}
        if self.gates:
            texts["quality gates"] = "".join(f"    {WORDS[gate.passed]} {gate}\n" for gate in self.gates)
        untuned = [sample["answer"] for sample in self.before.samples]
        for number, sample in enumerate(self.after.samples):
            parts = {"prompt": sample["prompt"], "after": sample["answer"], "wanted": sample["wanted"]}
            if number < len(untuned):
                parts["before"] = untuned[number]
            # Indented by four spaces, Markdown shows a text as it is.
            texts[f"samples/{number}"] = "\n\n".join(
                f"{name}\n\n" + textwrap.indent(text, "    ", lambda _: True) for name, text in parts.items()
            )
        return texts

    def _chosen(self) -> dict[str, Any]:
        """What sets this run apart from others: its options, what the user set, and the numbers compared most."""
        config, origins = self.composed.config, self.composed.origins
        by_user = {path for path, origin in origins.items() if set_by_user(origin) and not path.startswith(PLACES)}
        values = {k: v for k, v in leaves(self.composed.recorded).items() if k in by_user}
        settled = {"optim.lr": config.optim.lr, "steps": self.context.settled.num_steps, "seed": config.seed}
        return {**self.composed.choices, **settled, **values}

    def end(self, trainer: pl.Trainer) -> int:
        """Write record and report, print the summary; returns the exit code, 3 where a guard ended the run."""
        for name, guard in self.watched.items():
            self.after.metrics |= {f"{name}/{key}": value for key, value in guard.of_result.items()}
        asked = next((c for c in trainer.callbacks if isinstance(c, QualityGates)), None)  # type: ignore[attr-defined]
        self.gates = asked.ask(trainer, self.context, self.before, self.after) if asked else []
        refused = refusal(trainer) or (asked.refusal(self.gates) if asked else None)
        code = EXIT_REFUSED if refused else EXIT_OK
        if is_main_process():
            release_reserve(self.context.folder.root)
            self._write("refused" if refused else "done", code)
            write_report(self.context.folder.root)
            self._end_loggers("refused" if refused else "done")
            self._summary(trainer)
            if refused:
                print_problems([refused])
        return code

    def _write(self, status: str, code: int | None = None) -> None:
        config, trial = self.composed.config, self.composed.trial
        write_json(
            self.context.folder.record,
            {
                "status": status,
                "exit": code,
                "started": self.started,
                "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "identity": identity(self.composed.tree),
                "choices": self.composed.choices,
                "overrides": list(self.composed.overrides),
                "plugins": [p.as_record() for p in self.composed.plugins],
                "from_environment": self.composed.from_environment,
                "config_dirs": [str(d.resolve()) for d in self.composed.config_dirs],
                "pickers": self.composed.pickers,
                "trial": {"study": trial.study, "number": trial.number} if trial else None,
                "started_from": str(self.composed.base) if self.composed.base else None,
                "base_model": config.model.path,
                "method": config.method.name,
                "data": self.data,
                "parameters": self.parameters,
                "settled": self.context.settled.as_dict(),
                "hardware": facts(self.context),
                "efficiency": self._efficiency(),
                "metrics": {"before": self.before.metrics, "after": self.after.metrics},
                "classes": {"before": self.before.classes, "after": self.after.classes},
                "samples": {"before": self.before.samples, "after": self.after.samples},
                "guards": {name: guard.as_record() for name, guard in self.watched.items()},
                "gates": [asdict(gate) for gate in self.gates],
                "versions": versions(),
                "git": git_commit(),
            },
        )

    def _efficiency(self) -> dict[str, float]:
        """Utilisation, price and energy, where the run is on the devices of its profile."""
        config, machine = self.composed.config, self.context.machine
        if not is_present(config.hardware, machine):
            return {}
        flops: float | None = None
        # An architecture without a closed form has no utilisation; its price and energy are known all the same.
        with suppress(TuneforgeError):
            architecture = self.context.architecture.to_dict()
            shape = ModelShape.from_hf_config(architecture).with_classes(len(self.data.get("labels", ())))
            flops = flops_per_token(shape, Trainable.of_method(self.composed.tree["method"]))
        key, _ = _EXAMPLES if self._classifies else _TOKENS
        speeds = [m[key] for m in read_metrics(self.context.folder.metrics) if key in m]
        # The log counts supervised tokens, or texts. Useful work is on every token of the documents, not on padding.
        rows = self.context.train_rows
        tokens = float(rows.num_tokens.sum() / rows.num_labels.sum())
        speed = tokens * sum(speeds) / max(1, len(speeds))
        seconds = time.perf_counter() - self.clock
        return efficiency(config.hardware, flops, speed, seconds, machine.world_size)

    def _provenance(self) -> dict[str, Any]:
        # The paths are known here: what was written under the name of a secret is masked by it.
        return {path: masked_origin(path, o).as_dict() for path, o in sorted(self.composed.origins.items())}

    @property
    def _classifies(self) -> bool:
        return "labels" in self.data

    def _summary(self, trainer: pl.Trainer) -> None:
        folder, settled = self.context.folder, self.context.settled
        steps = [m for m in read_metrics(folder.metrics) if "train/loss" in m]
        key, what = _EXAMPLES if self._classifies else _TOKENS
        speed = sum(m[key] for m in steps) / len(steps) if steps else 0.0
        learnt = settled.label_tokens_per_step * settled.num_steps
        result = folder.result(not self.context.method.trains_base)
        if self.after.samples:
            sample = self.after.samples[0]
            untuned = self.before.samples[0]["answer"] if self.before.samples else ""
            say(f"\nprompt   {_one_line(sample['prompt'])}\nbefore   {_one_line(untuned)}")
            say(f"after    {_one_line(sample['answer'])}\nwanted   {_one_line(sample['wanted'])}")
        for gate in self.gates:
            say(f"{WORDS[gate.passed]}     {gate}")
        lines = dict(_changes(self.before.metrics, self.after.metrics))
        lines["trained on"] = f"{learnt:,.0f} {what}, {speed:,.0f} a second"
        lines |= {"result": str(result), "report": str(folder.report), "next": self._next_command(result)}
        width = max(map(len, lines)) + 2
        say("\n" + "\n".join(f"{name:<{width}}{value}" for name, value in lines.items()))

    def _next_command(self, result: Path) -> str:
        """The run's own command, going on from its result."""
        if self.context.method.trains_base:
            dropped, model = ("model", "hydra."), ["model=hf", setting("model.path", result)]
        else:
            dropped, model = ("model.adapter", "hydra."), [setting("model.adapter", result)]
        kept = [o for o in again(self.composed.overrides) if not key_of(o).startswith(dropped)]
        return command(*kept, *model, config_dirs=self.composed.config_dirs)


def _changes(before: dict[str, float], after: dict[str, float]) -> Iterator[tuple[str, str]]:
    """Every measure of the eval split, with its change; of the loss in percent."""
    for name, value in after.items():
        if name.startswith("eval/"):
            old = before.get(name)
            share = f" ({value / old - 1:+.1%})" if name == "eval/loss" and old else ""
            yield name.replace("/", " ").replace("_", " "), f"{_shown(old)} -> {_shown(value)}{share}"


def _shown(value: float | None) -> str:
    return "?" if value is None else f"{value:,.4f}"


def _one_line(text: str, width: int = 100) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 3] + "..."


def first_day(root: Path, *, resumed: bool) -> datetime.datetime:
    """The date that chat templates write as today; a resumed run keeps the date of its start."""
    given = read_record(root)["data"].get("day") if resumed else None
    if given is None:
        return datetime.datetime.now(datetime.UTC)
    try:
        return datetime.datetime.fromisoformat(given)
    except (TypeError, ValueError) as error:
        raise damaged(root / "run.json", f"data.day is no date: {given!r:.40}") from error
