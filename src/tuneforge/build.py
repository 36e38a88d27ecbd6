"""A checked config into objects: tokenizer, rows of tokens, settled numbers, trainer."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.utils.data import DataLoader
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from tuneforge import adapters, rules, shared
from tuneforge.artifacts.checkpoint_io import AtomicCheckpointIO
from tuneforge.artifacts.folder import RunFolder, make_folder
from tuneforge.artifacts.loggers import MetricsFile
from tuneforge.callbacks.checkpoints import Checkpoints
from tuneforge.callbacks.last_evaluation import LastEvaluation
from tuneforge.callbacks.samples import SampleAnswers
from tuneforge.callbacks.signals import StopSignals
from tuneforge.callbacks.start_checks import StartChecks, check_labels
from tuneforge.callbacks.trial_reports import TrialReports
from tuneforge.compose import Composed
from tuneforge.console import say, warn
from tuneforge.context import Context
from tuneforge.data.batches import EvalSampler, Rows, StepSampler, TimedLoader
from tuneforge.data.encode import Document, Encoded, encode, last_label
from tuneforge.data.labelled import CollateLabelled, LabelledRows, encode_labelled
from tuneforge.data.labels import Labels, majority
from tuneforge.data.rendering import written_day
from tuneforge.data.source import Source, general_examples
from tuneforge.data.template import choose_template
from tuneforge.data.turn_marks import turn_marks
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.generation import generation_config
from tuneforge.machine import Machine, present_machine
from tuneforge.method import Method
from tuneforge.model_checks import check_optimizer, check_rotary_lengths, fitted, warn_of_rounding
from tuneforge.models import (
    check_architecture,
    check_vocabulary,
    check_weights,
    labels_in_order_of,
    load_config,
    load_tokenizer,
    max_positions,
)
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.rules.loggers import FOLDERS
from tuneforge.rules.strategies import AUTO
from tuneforge.schema import Config
from tuneforge.settle import Costs, batch_warnings, fits_whole, settle, settle_length
from tuneforge.strategies import fsdp_tp
from tuneforge.targets import make
from tuneforge.vocabulary import add_tokens
from tuneforge.world import is_main_process


def prepare(composed: Composed, rows: Source, folder: RunFolder) -> Context:
    """Everything up to, and without, the weights.

    Raises:
        TuneforgeError: a model, template, length or batch that cannot work.
    """
    config, tree = composed.config, composed.tree
    machine = present_machine(config, rules.tensor_parallel_size(tree))
    check_weights(config.model)
    architecture = load_config(config.model)
    classes = rows.labels
    check_architecture(config.model, architecture, config.task_recipe.objective, classifies=classes is not None)
    _refuse_what_cannot_work(config, tree, machine, architecture.to_dict())
    check_optimizer(tree["optim"])
    if machine.tensor_parallel_size > 1:
        fsdp_tp.check(architecture, machine.tensor_parallel_size)
    tokenizer = load_tokenizer(config.model, generates=classes is None)
    check_vocabulary(config.model, architecture, tokenizer)
    method = make("method", tree["method"], Method)
    _add_tokens(config, tokenizer, method)
    adapters.check(config.model, tree["method"], method, tokenizer)
    config = fitted(config, architecture, method, tokenizer, classifies=classes is not None)
    positions = max_positions(architecture)
    max_length = settle_length(config.data.max_length, positions, config.task_recipe.max_length, method.positions)
    if classes is not None:
        classes = labels_in_order_of(classes, config.model, architecture)
        train_rows, eval_rows = _labelled_rows(config, rows, tokenizer, classes, max_length)
    else:
        _say_template(config, tokenizer, rows)
        train_rows, eval_rows = _rows(composed, rows, tokenizer, max_length)
    general = tuple(_general(config, tokenizer, max_length))
    num_classes = len(classes.names) if classes else 0
    chooses = tree["strategy"]["_target_"] == AUTO and machine.world_size > 1
    costs = _costs(composed, architecture.to_dict(), num_classes, needed=chooses)
    if chooses and costs is not None:
        holds_all = fits_whole(config, machine, train_rows, max_length, costs, may_checkpoint=method.checkpoints)
        machine, costs = _spread(machine, tree, costs, holds_all)
    settled = settle(config, machine, train_rows, max_length, costs, may_checkpoint=method.checkpoints)
    for problem in batch_warnings(config, settled, train_rows):
        warn(problem)
    warn_of_rounding(settled)
    check_rotary_lengths(config, architecture, [*train_rows.documents, *eval_rows.documents], settled)
    return Context(
        config,
        tree,
        machine,
        settled,
        folder,
        tokenizer,
        architecture,
        method,
        train_rows,
        eval_rows,
        tuple(rows.eval),
        general,
        _generation(config, architecture, tokenizer, train_rows),
        composed.trial,
    )


def _generation(
    config: Config, architecture: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, rows: Rows
) -> GenerationConfig:
    """How the result is to generate: it ends at EOS, and at the end of a turn where a document ends in one."""
    if isinstance(rows, LabelledRows):
        return GenerationConfig()
    ends = turn_marks(tokenizer).end_ids
    taught = {last_label(document) for document in rows.documents} & set(ends)
    return generation_config(config.model, architecture, [tokenizer.eos_token_id, *(ends if taught else ())])


def _add_tokens(config: Config, tokenizer: PreTrainedTokenizerBase, method: Method) -> None:
    tokens = config.model.add_tokens or []
    if tokens and not method.new_tokens:
        raise TuneforgeError(
            "untrained-tokens",
            f"adds {len(tokens)} tokens, and method={config.method.name} leaves their embeddings as they are drawn",
            path="model.add_tokens",
            fix="use method=lora or one of its relatives, or method=full",
        )
    add_tokens(tokenizer, tokens)


def _say_template(config: Config, tokenizer: PreTrainedTokenizerBase, rows: Source) -> None:
    """Settle the chat template; say which, or that there is nothing to lay out with it."""
    template = choose_template(tokenizer, config.model.chat_template)
    if any(example.messages for example in rows.train[:1]):
        say(template)
        if day := written_day(tokenizer):
            say(f"the chat template writes the day on which the run started into each conversation: {day:%Y-%m-%d}")
    elif config.model.chat_template != "auto":
        message = "has no effect in this run: its rows are no conversations"
        warn(Problem("no-effect", message, "model.chat_template"))


def _rows(composed: Composed, rows: Source, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Rows, Rows]:
    """Train and eval rows of next tokens."""
    config = composed.config
    options: dict[str, Any] = {
        "train_on": config.data.train_on, "max_length": max_length, "overlong": config.data.overlong,
        "on_bad": config.data.on_bad, "special_tokens": config.data.special_tokens_in_text,
        "max_turn_documents": config.data.max_turn_documents,
    }  # fmt: skip
    train, held = _encode(composed, rows, tokenizer, options)
    _say_lost(train, max_length, config.data.overlong)
    _say_lost(held, max_length, config.data.overlong, "eval ")
    check_labels(train.documents, tokenizer, config.data.train_on, turn_marks(tokenizer).end_ids)
    train_rows, eval_rows = (Rows(side.documents, max_length, config.data.packing) for side in (train, held))
    return train_rows, eval_rows


def _encode(
    composed: Composed, rows: Source, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
) -> list[Encoded]:
    """The train and the eval side as tokens; the trials of a sweep make them once."""
    sides = {"train": rows.train, "eval": rows.eval}
    if composed.trial is None:
        return [encode(side, tokenizer, **options) for side in sides.values()]
    made_from = {"rows": rows.digests, "data": composed.tree["data"], "seed": composed.config.seed, **options}
    made_from["tokenizer"] = shared.digest_of_tokenizer(tokenizer)
    made_from["day"] = f"{day:%Y-%m-%d}" if (day := written_day(tokenizer)) else ""
    folder = Path(composed.trial.shared)
    return [
        shared.encoded(folder, {**made_from, "side": name}, partial(encode, side, tokenizer, **options))
        for name, side in sides.items()
    ]


def _labelled_rows(
    config: Config, rows: Source, tokenizer: PreTrainedTokenizerBase, labels: Labels, max_length: int
) -> tuple[Rows, Rows]:
    """Train and eval rows of texts with labels."""
    options: dict[str, Any] = {
        "max_length": max_length, "overlong": config.data.overlong,
        "on_bad": config.data.on_bad, "special_tokens": config.data.special_tokens_in_text,
    }  # fmt: skip
    train, held = (encode_labelled(side, tokenizer, labels, **options) for side in (rows.train, rows.eval))
    _say_lost(train, max_length, config.data.overlong)
    _say_lost(held, max_length, config.data.overlong, "eval ")
    say(
        f"{len(train.documents):,} texts of {len(labels.names)} classes; the commonest answer alone would be right for "
        f"{majority(rows.eval):.1%} of the eval texts"
    )
    train_rows, eval_rows = (LabelledRows(side.documents, max_length, labels) for side in (train, held))
    return train_rows, eval_rows


def _general(config: Config, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Document]:
    """The documents that `regularise.ewc` measures on; none where it is off."""
    if not config.regularise.ewc:
        return []
    examples = general_examples(config.regularise.path, config.regularise.rows, config.seed, "regularise.path")
    return encode(examples, tokenizer, train_on="all", max_length=max_length, overlong="truncate").documents


def _refuse_what_cannot_work(
    config: Config, tree: dict[str, Any], machine: Machine, architecture: dict[str, Any]
) -> None:
    """The rules that need the present device and the model's config.json."""
    found = [
        *rules.device_problems(config, machine.name, machine.kind, machine.bf16, machine.capability),
        *rules.architecture_problems(config, architecture, tree["method"]),
    ]
    if found:
        raise TuneforgeError.of(found)


def _spread(machine: Machine, tree: dict[str, Any], costs: Costs, holds_all: bool) -> tuple[Machine, Costs]:
    """What strategy=auto makes of several devices: copies where each holds everything, else parts of the weights."""
    if holds_all or not rules.may_split(tree):
        say(f"strategy=auto: ddp, {'the model fits on a device' if holds_all else 'the weights cannot be split here'}")
        return machine, costs
    say("strategy=auto: fsdp, the model does not fit on a device")
    return dataclasses.replace(machine, holds_all=False), dataclasses.replace(costs, splits=True)


def _costs(composed: Composed, architecture: dict[str, Any], num_classes: int, *, needed: bool) -> Costs | None:
    """What the memory estimate needs to know, where `batch.per_device=auto` or the choice of a strategy asks for it."""
    auto = composed.config.batch.per_device == "auto"
    if not auto and not needed:
        return None
    try:
        return estimable(architecture, composed.tree, num_classes)
    except TuneforgeError:
        if auto:
            raise
        say("strategy=auto: ddp, as there is no memory estimate for this model")
        return None


def estimable(architecture: dict[str, Any], tree: dict[str, Any], num_classes: int) -> Costs:
    """What the memory estimate needs; `num_classes` is 0 for a language model.

    Raises:
        TuneforgeError: the architecture is not covered, so that `auto` cannot be worked out; training it is no problem.
    """
    try:
        shape = ModelShape.from_hf_config(architecture).with_classes(num_classes)
        return Costs(shape, Trainable.of_method(tree["method"]), rules.splits_weights(tree), rules.parts_in_host(tree))
    except TuneforgeError as error:
        raise TuneforgeError(
            "no-memory-estimate",
            f"auto needs a memory estimate, and there is none for this model: {error.problems[0].message}",
            path="batch.per_device",
            fix="set batch.per_device=1, or more where memory allows",
        ) from error


def _say_lost(encoded: Encoded, max_length: int, overlong: str, side: str = "") -> None:
    if encoded.truncated:
        done = "cut into rows" if overlong == "chunk" else "cut to that length"
        say(f"{encoded.truncated} {side}documents are longer than {max_length} tokens and were {done}")
    if encoded.dropped:
        why = f"too long, or no supervised token within {max_length} tokens"
        warn(f"{encoded.dropped} {side}documents were dropped: {why}")


class Loaders(pl.LightningDataModule):
    """The train and eval loaders of this process."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context
        labelled = isinstance(context.train_rows, LabelledRows)
        pad_id = int(context.tokenizer.pad_token_id or 0)
        self.collate = CollateLabelled(pad_id) if labelled else context.collate()

    def train_dataloader(self) -> DataLoader[Any]:
        """Micro-batches from the step that training is at; Lightning asks after a checkpoint is restored."""
        assert self.trainer is not None
        rank = self.context.machine.data_parallel_rank
        sampler = self.context.sampler(rank=rank, start_step=self.trainer.global_step)
        return self._loader(self.context.train_rows, sampler)

    def val_dataloader(self) -> DataLoader[Any]:
        """The eval rows of this process, in order."""
        machine = self.context.machine
        sampler = EvalSampler(
            len(self.context.eval_rows),
            self.context.settled.per_device,
            machine.data_parallel_size,
            machine.data_parallel_rank,
        )
        return self._loader(self.context.eval_rows, sampler)

    def _loader(self, rows: Rows, sampler: StepSampler | EvalSampler) -> DataLoader[Any]:
        workers = self.context.config.data.num_workers
        return TimedLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.context.machine.kind == "cuda",
        )


def build_trainer(context: Context, keep_to_step: int) -> pl.Trainer:
    """Lightning's trainer for this process; nothing in it prints, saves or samples by Lightning's own defaults."""
    config, settled = context.config, context.settled
    callbacks: list[Callback] = [StartChecks(), SampleAnswers(), LastEvaluation()]
    callbacks += [
        make("callbacks", _below(node, context.folder.root), Callback) for node in context.tree["callbacks"].values()
    ]
    if context.trial is not None and context.trial.objective:
        callbacks.append(TrialReports(context.trial, settled.eval_every))
    # Last: what it saves holds the state of the others after this step, not in the middle of it.
    callbacks.append(StopSignals())
    loggers = [MetricsFile(context.folder.metrics, keep_to_step)]
    if is_main_process():
        root = context.folder.root
        loggers += [make("logger", _below(node, root), Logger, root) for node in context.tree["logger"].values()]
    return pl.Trainer(
        default_root_dir=context.folder.root,
        accelerator="gpu" if context.machine.kind == "cuda" else context.machine.kind,
        devices=_devices(context.machine),
        num_nodes=context.machine.num_nodes,
        strategy=make("strategy", context.tree["strategy"], (Strategy, str), context.machine),
        precision=settled.precision,  # type: ignore[arg-type]
        max_epochs=1,
        max_steps=settled.num_steps,
        accumulate_grad_batches=settled.accumulate,
        gradient_clip_val=config.trainer.gradient_clip_val,
        val_check_interval=settled.eval_every * settled.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=config.trainer.log_every_n_steps,
        deterministic=config.trainer.deterministic,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(c, pl.callbacks.ProgressBar) for c in callbacks),
        enable_model_summary=False,
        inference_mode=False,
        logger=loggers,
        callbacks=callbacks,
        plugins=_plugins(callbacks, context.machine),
    )


def _below(node: Mapping[str, Any], root: Path) -> Mapping[str, Any]:
    """A node whose folders are taken from the run folder (rules.loggers), where no link leads out of it."""
    library = str(node.get("_target_")).startswith("lightning.")
    folders = {k: root / v for k, v in node.items() if library and k in FOLDERS and isinstance(v, str)}
    for folder in folders.values():
        make_folder(folder)
    return {**node, **{key: str(folder) for key, folder in folders.items()}}


def _plugins(callbacks: Sequence[Callback], machine: Machine) -> list[Any]:
    """What writes checkpoints, and who the processes are.

    Whoever started them, `World` has put torchrun's variables into the environment. Left to itself, Lightning would
    take over signals under SLURM, and requeue jobs with checkpoints of its own.
    """
    background = next((c.background for c in callbacks if isinstance(c, Checkpoints)), None)
    environment = TorchElasticEnvironment() if machine.world_size > 1 else LightningEnvironment()
    return [AtomicCheckpointIO(background), environment]


def _devices(machine: Machine) -> int | list[int]:
    """Lightning's word for a machine's devices: the count where there are several processes, else which one."""
    if machine.world_size > 1 or machine.kind != "cuda":
        return machine.world_size // machine.num_nodes
    return [machine.device.index]


def facts(context: Context) -> dict[str, Any]:
    """What run.json keeps of the machine and the profile."""
    machine = context.machine
    return {
        "profile": dataclasses.asdict(context.config.hardware),
        "present": {"device": str(machine.device), "name": machine.name, "memory_bytes": machine.memory_bytes},
    }
