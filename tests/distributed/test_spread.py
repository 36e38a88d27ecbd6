"""A run goes on under another strategy and on another number of processes, from whole checkpoints and from parts."""

import json
import shutil
from pathlib import Path

import grid
import pytest

from helpers import SHORT, Ran, needs_deepspeed
from tuneforge.artifacts import parts, whole
from tuneforge.compose import compose
from tuneforge.handover import pack

OPTIONS = (
    *SHORT,
    "samples.num=0",
    "trainer.val_check_interval=0.01",
    "task_recipe.dropout=0",
    "data.packing=false",
    "scheduler=constant",
    "optim=adamw",
    "optim.lr=2e-5",
    "callbacks.checkpoints.keep_last=3",
)
ONE = ("strategy=single", "batch.per_device=4")
TWO = ("trainer.devices=2", "batch.per_device=2")


def handover(folder: Path, number: int, *options: str) -> Path:
    """A run that goes on from a checkpoint that the one before it is going to leave."""
    config = compose([*OPTIONS, *TWO, *options, f"trainer.max_steps={number}", f"hydra.run.dir={folder}"])
    checkpoint = whole.path_of(folder / "checkpoints", number - 1)
    place = {"folder": str(folder), "checkpoint": str(checkpoint), "finished": False}
    path = folder.with_name(f"{number}.json")
    path.write_text(json.dumps({"config": pack(config), "place": place}))
    return path


@pytest.mark.soak
def test_single_ddp_fsdp_tensor_parallel_and_single_again(command, tmp_path):
    """A step under each, whose moments the next one's loss shows; the last also from before a damaged checkpoint."""
    chosen = (*ONE, "method=full")
    uninterrupted = command(*OPTIONS, *chosen, "trainer.max_steps=6")
    begun = command(*OPTIONS, *chosen, "trainer.max_steps=1")
    in_parts = "callbacks.checkpoints.sharded=true"
    ways = [("strategy=ddp",), ("strategy=fsdp",), ("strategy=fsdp_tp", in_parts), ("strategy=fsdp", in_parts)]
    handovers = [handover(begun.folder, n, "method=full", *way) for n, way in enumerate(ways, 2)]
    grid.start("several", *handovers, devices=2, seconds=grid.SECONDS * len(ways))
    last = begun.folder / "checkpoints" / "step-00000005"
    assert {p.name for p in last.glob("part-*")} == {parts.file_of(0), parts.file_of(1)}
    assert not parts.are_in(last.with_name("step-00000003"))

    damaged = Ran(0, tmp_path / "damaged", "", "")
    shutil.copytree(begun.folder, damaged.folder)
    part = damaged.folder / "checkpoints" / last.name / parts.file_of(1)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)

    for ran, start in ((begun, 5), (damaged, 4)):
        resumed = command(*OPTIONS, *chosen, "trainer.max_steps=6", f"resume={ran.folder}")
        assert resumed.code == 0, resumed.err
        assert f"from step-0000000{start}" in resumed.out
        assert "resume: strategy=single, 4 rows x 2 x 1 instead of strategy=fsdp" in resumed.out
        assert ("is passed over: part-00001.safetensors is not what was written" in resumed.out) == (start == 4)
        assert_equal(uninterrupted, ran)


def assert_equal(one: Ran, other: Ran) -> None:
    for key in ("train/loss", "eval/loss"):
        series = [[m[key] for m in ran.metrics if key in m] for ran in (one, other)]
        assert series[1] == pytest.approx(series[0], rel=1e-5)


@needs_deepspeed
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "method", [pytest.param("lora", marks=pytest.mark.soak_full), pytest.param("full", marks=pytest.mark.soak)]
)
def test_deepspeed_takes_over_and_hands_on(command, method):
    chosen = f"method={method}"
    uninterrupted = command(*OPTIONS, *ONE, chosen, "trainer.max_steps=6")
    begun = command(*OPTIONS, *ONE, chosen, "trainer.max_steps=1")
    in_parts = ("strategy=fsdp", "callbacks.checkpoints.sharded=true")
    ways = [("strategy=deepspeed_zero2",), in_parts, ("strategy=deepspeed_zero3",), ("strategy=ddp",)]
    for number, way in enumerate(ways, 2):
        ran = command(*OPTIONS, *TWO, chosen, *way, f"trainer.max_steps={number}", f"resume={begun.folder}")
        assert ran.code == 0, ran.err + ran.out
    assert command(*OPTIONS, *ONE, chosen, "trainer.max_steps=6", f"resume={begun.folder}").code == 0
    assert_equal(uninterrupted, begun)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_parts_of_two_processes_go_on_in_three_and_theirs_in_one(command):
    chosen = ("method=full", "strategy=fsdp", "callbacks.checkpoints.sharded=true", "batch.effective=12")
    spread = {n: (f"trainer.devices={n}", f"batch.per_device={12 // n}") for n in (1, 2, 3)}
    uninterrupted = command(*OPTIONS, *chosen, "strategy=single", *spread[1], "trainer.max_steps=3")
    begun = command(*OPTIONS, *chosen, *spread[2], "trainer.max_steps=1")
    for devices, steps in ((3, 2), (1, 3)):
        ran = command(*OPTIONS, *chosen, *spread[devices], f"trainer.max_steps={steps}", f"resume={begun.folder}")
        assert ran.code == 0, ran.err + ran.out
    assert_equal(uninterrupted, begun)


def test_parts_under_a_strategy_without_any_are_said_to_be_none(command):
    ran = command(*OPTIONS, *ONE, "trainer.max_steps=1", "callbacks.checkpoints.sharded=true")
    assert ran.code == 0, ran.err
    assert "callbacks.checkpoints.sharded: has no effect in this run: its strategy writes checkpoints whole" in ran.out
