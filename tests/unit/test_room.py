"""A run that would fill its disk is refused before it starts."""

import collections
import shutil

import psutil
import pytest
import torch

from helpers import SHORT
from tuneforge.artifacts.room import GIB, Sizes, check_room, sizes, too_large_to_gather
from tuneforge.errors import TuneforgeError

Free = collections.namedtuple("Free", ["free", "available", "total"])


@pytest.fixture
def free(monkeypatch):
    """Say how many GiB the disk and the memory have."""

    def gib(disk: float, memory: float = 1000) -> None:
        found = Free(int(disk * GIB), int(memory * GIB), int(memory * GIB))
        monkeypatch.setattr(shutil, "disk_usage", lambda path: found)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: found)

    return gib


def test_sizes_are_those_of_trained_weights_and_of_the_result():
    model = torch.nn.Linear(10, 20, bias=False)
    model.frozen = torch.nn.Linear(100, 100, bias=False).requires_grad_(False)
    assert sizes(model, 8, None) == Sizes(checkpoint=200 * (4 + 8), result=200 * 4)
    assert sizes(model, 2, model, 2) == Sizes(checkpoint=200 * (4 + 2), result=10_200 * 2)


WANTED = Sizes(checkpoint=2 * GIB, result=GIB)


def test_room_for_those_kept_one_more_and_the_result(tmp_path, free):
    free(2 * 3 + 1)
    check_room(tmp_path / "run" / "checkpoints", WANTED, 2, copied=True)
    free(2 * 3 + 0.9)
    with pytest.raises(TuneforgeError) as raised:
        check_room(tmp_path / "run" / "checkpoints", WANTED, 2, copied=True)
    (problem,) = raised.value.problems
    assert problem.code == "no-room-on-disk"
    assert "6.90 GiB free, and 7.00 are wanted: 3 checkpoints of 2.00 and a result of 1.00" in problem.message
    assert str(tmp_path) in problem.message
    (tmp_path / "step-00000001").mkdir()
    check_room(tmp_path, WANTED, 2, copied=True)  # one of them is there already
    free(1)
    check_room(tmp_path, WANTED, 0, copied=False)  # no checkpoints at all


def test_a_copy_that_would_not_fit_in_memory_is_refused(tmp_path, free):
    free(1000, memory=1.9)
    check_room(tmp_path, WANTED, 2, copied=False)
    with pytest.raises(TuneforgeError) as raised:
        check_room(tmp_path, WANTED, 2, copied=True)
    assert raised.value.problems[0].code == "no-room-for-copy"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_run_takes_the_room_that_was_counted_for_it(command, monkeypatch, method):
    from tuneforge.callbacks import start_checks

    counted = []
    monkeypatch.setattr(
        start_checks, "check_room", lambda folder, wanted, keep, copied, hosts: counted.append((wanted, keep))
    )
    ran = command(*SHORT, f"method={method}", "trainer.max_steps=1", "samples.num=0")
    assert ran.code == 0, ran.err
    ((wanted, keep),) = counted
    assert keep == 2
    (state,) = ran.folder.glob("checkpoints/*/state.pt")
    assert state.stat().st_size == pytest.approx(wanted.checkpoint, rel=0.05)
    (result,) = [*ran.folder.glob("adapter/*.safetensors"), *ran.folder.glob("model/*.safetensors")]
    assert result.stat().st_size == pytest.approx(wanted.result, rel=0.05)


def test_a_copy_in_parts_is_shared_by_hosts(tmp_path, free):
    free(1000, memory=1.1)
    check_room(tmp_path, WANTED, 2, copied=True, hosts=2)
    assert too_large_to_gather(WANTED.checkpoint)
    free(1000, memory=8)
    assert not too_large_to_gather(WANTED.checkpoint)


def test_a_full_disk_is_told_before_the_base_is_measured(refused, free, tmp_path):
    free(0.0001)
    said = refused(*SHORT, f"hydra.run.dir={tmp_path / 'run'}", f"output_root={tmp_path}")
    assert "GiB free, and" in said
    assert not (tmp_path / "run").exists()
