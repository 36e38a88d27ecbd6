"""DeepSpeed's ZeRO gives what one process gives, in numbers and in checkpoints."""

import importlib.metadata
import sys

import grid
import pytest

from helpers import SHORT, Ran, needs_deepspeed, same_adapter, shown
from tuneforge import rules
from tuneforge.artifacts.folder import read_metrics

PLAIN = (
    *SHORT,
    "samples.num=0",
    "trainer.val_check_interval=2",
    "task_recipe.dropout=0",
    "data.packing=false",
    "optim.lr=2e-4",
)
ONE = (*PLAIN, "batch.per_device=4")
TWO = (*PLAIN, "batch.per_device=2", "trainer.devices=2")


def series(ran: Ran, key: str) -> list[float]:
    return [m[key] for m in ran.metrics if key in m]


def assert_equal(one: Ran, two: Ran) -> None:
    assert two.code == 0, two.err + two.out
    assert two.record["settled"]["world_size"] == two.record["settled"]["accumulate"] == 2
    assert two.record["parameters"] == one.record["parameters"]
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert series(two, "train/grad_norm") == pytest.approx(series(one, "train/grad_norm"), rel=1e-4)
    assert series(two, "eval/loss") == pytest.approx(series(one, "eval/loss"), rel=1e-5)


@needs_deepspeed
@pytest.mark.soak
def test_two_processes_train_as_one_and_leave_the_same_checkpoint(command):
    one = command(*ONE, "method=dora")
    two = command(*TWO, "method=dora", "strategy=deepspeed_zero3", "samples.num=1", "samples.max_new_tokens=2")
    assert_equal(one, two)
    grid.assert_same_checkpoint(one.folder, two.folder)
    assert two.record["samples"]["after"]
    assert two.err == ""
    assert "deepspeed" not in two.out.lower().replace("strategy=deepspeed_zero3", "")


@needs_deepspeed
@pytest.mark.soak_full
def test_a_run_that_was_resumed_goes_on_as_one_process_does(command):
    """All weights train, in two groups of the optimizer; with other moments in it the next losses would be others."""
    steady = ("method=full", "scheduler=constant", "optim.lr=2e-5")
    one = command(*ONE, *steady)
    options = (*TWO, *steady, "strategy=deepspeed_zero2")
    begun = command(*options, "trainer.max_steps=2")
    assert begun.code == 0, begun.err
    assert command(*options, f"resume={begun.folder}").code == 0
    assert_equal(one, begun)
    grid.assert_same_checkpoint(one.folder, begun.folder)
    names = [{p.name for p in (ran.folder / "model").iterdir()} for ran in (one, begun)]
    assert names[0] == names[1]


def test_a_missing_deepspeed_is_told_before_weights_load(command, monkeypatch):
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("tuneforge.compat.importlib.metadata.version", version)
    ran = command(*SHORT, "strategy=deepspeed_zero2")
    assert ran.code == 2
    assert "needs DeepSpeed" in ran.err
    assert "tuneforge[deepspeed]" in ran.err


def test_an_older_deepspeed_is_refused(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", object())
    monkeypatch.setattr("tuneforge.compat.importlib.metadata.version", lambda name: "0.18.2")
    ran = command(*SHORT, "strategy=deepspeed_zero2")
    assert ran.code == 2
    assert "0.18.2 is installed" in ran.err


@needs_deepspeed
@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_every_stage_goes_on_from_its_checkpoint_to_the_bit(tmp_path):
    """That each trains as one process does is in the grid (test_equality.py)."""
    assert len(grid.STAGES) == 5
    cases = [("lora", stage) for stage in grid.STAGES]
    more = ("scheduler=constant", "trainer.val_check_interval=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    grid.run(cases, 2, whole, (*more, "trainer.max_steps=4"))
    grid.run(cases, 2, parts, (*more, "trainer.max_steps=2"))
    handovers = []
    for _, stage in cases:
        resumed = (*more, "trainer.max_steps=4", f"resume={parts / f'lora-{stage}'}")
        handovers.append(grid.handed_over(grid.composed("lora", stage, parts, resumed), parts / f"{stage}.json"))
    grid.start("several", *handovers, devices=2, seconds=grid.SECONDS * len(cases))
    for _, stage in cases:
        one, two = (folder / f"lora-{stage}" for folder in (whole, parts))
        metrics = [read_metrics(folder / "metrics.jsonl") for folder in (one, two)]
        assert len([m for m in metrics[0] if "train/loss" in m]) == 4
        assert shown(metrics[1]) == shown(metrics[0]), stage
        assert same_adapter(one, two), stage


@needs_deepspeed
@pytest.mark.soak_full
def test_an_optimizer_that_looks_at_matrices_would_give_other_numbers(command, monkeypatch):
    """What the rule refuses: Adafactor factors matrices, and sees none."""
    optim = ("method=full", "optim=adafactor", "optim.lr=2e-4")
    monkeypatch.setattr(rules.strategies, "ELEMENTWISE", (*rules.strategies.ELEMENTWISE, "tuneforge.optim.adafactor"))
    one, two = command(*ONE, *optim), command(*TWO, *optim, "strategy=deepspeed_zero1")
    assert two.code == 0, two.err
    assert two.losses != pytest.approx(one.losses, rel=1e-5)


@needs_deepspeed
@pytest.mark.soak_full
@pytest.mark.parametrize("option", ["method=adalora", "regularise.ewc=1"])
def test_what_reads_gradients_would_find_none(command, monkeypatch, option):
    monkeypatch.setattr(rules.strategies, "ZERO", "")
    one, two = command(*ONE, option), command(*TWO, option, "strategy=deepspeed_zero2")
    assert one.code == 0
    assert two.code == 1 or two.losses != pytest.approx(one.losses, rel=1e-5)
