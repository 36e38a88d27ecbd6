"""DeepSpeed's ZeRO gives what one process gives, in numbers and in checkpoints."""

import importlib.metadata
import sys
from pathlib import Path

import pytest

from helpers import SHORT, Ran, needs_deepspeed, same_adapter, shown
from tuneforge import rules
from tuneforge.artifacts import whole
from tuneforge.artifacts.checkpoint_io import STATE

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
STAGES = ("deepspeed_zero1", "deepspeed_zero2", "deepspeed_zero2_offload", "deepspeed_zero3", "deepspeed_zero3_offload")


def series(ran: Ran, key: str) -> list[float]:
    return [m[key] for m in ran.metrics if key in m]


def assert_equal(one: Ran, two: Ran) -> None:
    assert two.code == 0, two.err + two.out
    assert two.record["settled"]["world_size"] == two.record["settled"]["accumulate"] == 2
    assert two.record["parameters"] == one.record["parameters"]
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert series(two, "train/grad_norm") == pytest.approx(series(one, "train/grad_norm"), rel=1e-4)
    assert series(two, "eval/loss") == pytest.approx(series(one, "eval/loss"), rel=1e-5)


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """The same names, shapes and types, in the same order, and the same numbers within rounding."""
    import torch

    found = [whole.newest(folder / "checkpoints")[0] for folder in (one, two)]
    assert found[0] is not None
    assert found[1] is not None
    a, b = (torch.load(path / STATE, weights_only=True) for path in found)
    assert a.keys() == b.keys()
    assert list(a["state_dict"]) == list(b["state_dict"])
    (first,), (second,) = a["optimizer_states"], b["optimizer_states"]
    assert first["param_groups"] == second["param_groups"]
    assert list(first["state"]) == list(second["state"])
    pairs = [(a["state_dict"][k], b["state_dict"][k]) for k in a["state_dict"]]
    pairs += [(v, second["state"][i][k]) for i, state in first["state"].items() for k, v in state.items()]
    for x, y in pairs:
        torch.testing.assert_close(y, x, rtol=1e-3, atol=1e-5)


@needs_deepspeed
def test_two_processes_train_as_one_and_leave_the_same_checkpoint(command):
    one = command(*ONE, "method=dora")
    two = command(*TWO, "method=dora", "strategy=deepspeed_zero3", "samples.num=1", "samples.max_new_tokens=2")
    assert_equal(one, two)
    assert_same_checkpoint(one.folder, two.folder)
    assert two.record["samples"]["after"]
    assert two.err == ""
    assert "deepspeed" not in two.out.lower().replace("strategy=deepspeed_zero3", "")


@needs_deepspeed
@pytest.mark.soak
def test_a_run_that_was_resumed_goes_on_as_one_process_does(command):
    """All weights train, in two groups of the optimizer; with other moments in it the next losses would be others."""
    steady = ("method=full", "scheduler=constant", "optim.lr=2e-5")
    one = command(*ONE, *steady)
    options = (*TWO, *steady, "strategy=deepspeed_zero2")
    begun = command(*options, "trainer.max_steps=2")
    assert begun.code == 0, begun.err
    assert command(*options, f"resume={begun.folder}").code == 0
    assert_equal(one, begun)
    assert_same_checkpoint(one.folder, begun.folder)
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


# ---- the whole grid


@pytest.fixture(scope="module")
def singles() -> dict[str, Ran]:
    """Runs of one process, by method."""
    return {}


@needs_deepspeed
@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "strategy"),
    [
        *((m, s) for m in ("full", "lora", "dora", "prompt_tuning") for s in STAGES),
        *(("qlora", s) for s in STAGES if s in rules.strategies.QUANTISED_STRATEGIES[4]),
    ],
)
def test_every_stage_trains_every_kind_of_method_as_one_process(command, singles, method, strategy):
    chosen = (f"method={method}", "optim=adamw", "optim.lr=2e-5", "scheduler=constant")
    one = singles[method] = singles.get(method) or command(*ONE, *chosen)
    two = command(*TWO, *chosen, f"strategy={strategy}")
    assert_equal(one, two)
    assert_same_checkpoint(one.folder, two.folder)
    if method == "lora":
        options = (*TWO, *chosen, f"strategy={strategy}")
        begun = command(*options, "trainer.max_steps=2")
        assert command(*options, f"resume={begun.folder}").code == 0
        assert shown(begun.metrics) == shown(two.metrics)
        assert same_adapter(two.folder, begun.folder)


@needs_deepspeed
@pytest.mark.soak
def test_an_optimizer_that_looks_at_matrices_would_give_other_numbers(command, monkeypatch):
    """What the rule refuses: Adafactor factors matrices, and sees none."""
    optim = ("method=full", "optim=adafactor", "optim.lr=2e-4")
    monkeypatch.setattr(rules.strategies, "ELEMENTWISE", (*rules.strategies.ELEMENTWISE, "tuneforge.optim.adafactor"))
    one, two = command(*ONE, *optim), command(*TWO, *optim, "strategy=deepspeed_zero1")
    assert two.code == 0, two.err
    assert two.losses != pytest.approx(one.losses, rel=1e-5)


@needs_deepspeed
@pytest.mark.soak
@pytest.mark.parametrize("option", ["method=adalora", "regularise.ewc=1"])
def test_what_reads_gradients_would_find_none(command, monkeypatch, option):
    monkeypatch.setattr(rules.strategies, "ZERO", "")
    one, two = command(*ONE, option), command(*TWO, option, "strategy=deepspeed_zero2")
    assert one.code == 0
    assert two.code == 1 or two.losses != pytest.approx(one.losses, rel=1e-5)
