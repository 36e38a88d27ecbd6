"""A run from a checked config to its folder, in the order in which it happens."""

from typing import TYPE_CHECKING

from tuneforge import resume, resume_checks
from tuneforge.compat import import_bitsandbytes
from tuneforge.compose import Composed
from tuneforge.console import quiet_libraries, say, warn
from tuneforge.data import source
from tuneforge.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT, Problem, TuneforgeError
from tuneforge.rules.strategies import one_process

if TYPE_CHECKING:
    from tuneforge.artifacts.record import Record
    from tuneforge.context import Context
    from tuneforge.data.source import Source
    from tuneforge.resume import Place
    from tuneforge.schema.training import Trainer


def launch(composed: Composed) -> int:
    """Run a composed config in this process, or in as many as it asks for; returns the exit code."""
    quiet_libraries()
    announce(composed)
    rows, place = read_and_choose(composed)
    with place.claim:
        if place.finished:
            return EXIT_OK
        processes = num_processes(composed.config.trainer)
        if processes > 1 and not one_process(composed.tree):
            from tuneforge.launcher import run_processes

            return run_processes(composed, place, processes)
        return train(composed, rows, place)


def announce(composed: Composed) -> None:
    """Say what the command line should know of a config before its run."""
    for line in composed.notes:
        say(line)
    for warning in composed.warnings:
        warn(warning)


def read_and_choose(composed: Composed) -> "tuple[Source, Place]":
    """The rows, and where the run goes. They come before everything heavy: a bad file is told in under a second.

    Raises:
        TuneforgeError: rows that cannot be used, or a place that cannot be.
    """
    rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
    _compare_data(composed, rows)
    return rows, resume.choose(composed, rows)


def _compare_data(composed: Composed, rows: "Source") -> None:
    """Say when a run is started from another and its rows are no longer those."""
    if composed.base is None:
        return
    from tuneforge.artifacts.kept import read_record

    if read_record(composed.base)["data"]["sha256"] != rows.digest:
        problem = Problem("other-rows", f"the rows are not those of {composed.base}", "data", fix="give the same file")
        warn(problem)


def num_processes(trainer: "Trainer") -> int:
    """Processes on this machine: as many as asked for, or one for each GPU."""
    if isinstance(trainer.devices, int):
        return trainer.devices
    import torch

    return max(1, torch.cuda.device_count()) if trainer.accelerator in ("auto", "cuda") else 1


def train(composed: Composed, rows: "Source", place: "Place") -> int:
    """One process's run: whatever ends it is written down, and told in the words of the config."""
    import_bitsandbytes()
    from tuneforge.artifacts.record import Record, first_day
    from tuneforge.boundary import library_errors_explained
    from tuneforge.build import prepare
    from tuneforge.callbacks.signals import Stopped, heard
    from tuneforge.data.rendering import set_day
    from tuneforge.vocabulary import digests

    with library_errors_explained(composed.config, composed.tree):
        set_day(first_day(place.folder.root, resumed=place.checkpoint is not None))
        context = prepare(composed, rows, place.folder)
        resume_checks.check_spread(composed, place, context.settled.as_dict())
        resume_checks.check_tokens(composed, place, digests(context.tokenizer))
        record = Record.of(composed, context, rows, resumed=place.checkpoint is not None)
    try:
        with heard(), library_errors_explained(composed.config, composed.tree):
            return _train(context, record, place)
    except Stopped as stopped:
        return record.interrupted(stopped.number)
    except TuneforgeError as error:
        record.failed(error.exit_code)
        raise
    except KeyboardInterrupt:
        record.failed(EXIT_SIGINT)
        raise
    except BaseException:  # SystemExit of a library too: no record stays at "running"
        record.failed(EXIT_BUG)
        raise


def _train(context: "Context", record: "Record", place: "Place") -> int:
    """Measure the base, train, restore the best, measure again, write it all down."""
    import lightning.pytorch as pl

    from tuneforge import finish
    from tuneforge.build import Loaders, build_trainer
    from tuneforge.callbacks.guard import guards
    from tuneforge.sanity import overfit_one_batch
    from tuneforge.targets import make

    module = make("task_recipe", context.tree["task_recipe"], pl.LightningModule, context)
    trainer, loaders = build_trainer(context, place.step), Loaders(context)
    record.watched, record.loggers = guards(trainer), trainer.loggers

    if place.checkpoint is None:
        record.before = finish.measure_base(trainer, module, loaders)
        if context.config.sanity.overfit_one_batch:
            overfit_one_batch(context, trainer, module, loaders)
        record.begin(trainer, module)
    else:
        record.go_on()
    trainer.fit(module, loaders, ckpt_path=place.checkpoint, weights_only=True)
    stopped = finish.signal_received(trainer)
    if stopped is not None:
        return record.interrupted(stopped)
    if finish.pruned(trainer):
        return record.pruned()

    finish.restore_best(trainer, module)
    record.after = finish.measure(trainer, module, loaders)
    finish.export(context, trainer, module)
    return record.end(trainer)
