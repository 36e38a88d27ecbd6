"""SIGKILL at any moment: the run that goes on is the uninterrupted one to the bit."""

import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import SHORT, needs_deepspeed, shown
from tuneforge.artifacts import whole
from tuneforge.artifacts.folder import read_json, read_metrics

STEPS = (
    *SHORT,
    "samples.num=0",
    "trainer.max_steps=8",
    "trainer.val_check_interval=2",
    "optim.lr=2e-3",
    "batch.per_device=8",
    "callbacks.spike_guard.at_least=2",
    "resume=auto",
)
SOAK = partial(pytest.param, marks=pytest.mark.soak)
FULL = partial(pytest.param, marks=pytest.mark.soak_full)
IN_PARTS = ("method=full", "optim=adamw", "callbacks.checkpoints.sharded=true")


def start(folder: Path, *options: str, **environment: str) -> "subprocess.Popen[bytes]":
    """The command in a process of its own, in `folder` whatever becomes of it."""
    where = (f"hydra.run.dir={folder}", f"output_root={folder.parent / 'outputs'}")
    command = [sys.executable, "-m", "tuneforge", *options, *where]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **environment})


def kill_at(child: "subprocess.Popen[bytes]", seconds: float) -> None:
    """SIGKILL to it and to all that it started."""
    until = time.monotonic() + seconds
    while child.poll() is None and time.monotonic() < until:
        time.sleep(0.005)
    family = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
    child.kill()
    for process in family:
        process.kill()
    psutil.wait_procs(family)
    child.wait()


def wait_for_step(child: "subprocess.Popen[bytes]", folder: Path, step: int) -> None:
    """Until the run has logged that many steps, those of the processes before it among them."""
    file = folder / "metrics.jsonl"
    while child.poll() is None and not (file.is_file() and file.read_bytes().count(b'"train/loss"') >= step):
        time.sleep(0.005)


def weights(folder: Path) -> bytes:
    """What the run exports."""
    (file,) = [*folder.glob("adapter/*.safetensors"), *folder.glob("model/*.safetensors")]
    return file.read_bytes()


@pytest.mark.soak
def test_a_kill_in_the_middle_of_a_save_and_one_with_a_foreign_tmpdir(command, tmp_path):
    """All weights are trained: their checkpoints take long enough to be caught half written."""
    options = (*STEPS, "method=full")
    reference = command(*options)
    assert reference.code == 0, reference.err
    folder = tmp_path / "killed"
    foreign = {"TMPDIR": "/dev/shm"} if os.path.ismount("/dev/shm") else {}
    child = start(folder, *options, **foreign)
    # The second save: a good checkpoint is there, and half of another.
    while child.poll() is None and not (list(folder.glob("checkpoints/step-*")) and half_written(folder)):
        time.sleep(0.001)
    kill_at(child, 0)
    (left,) = half_written(folder)
    assert whole.damage(left)
    child = start(folder, *options, **foreign)
    while child.poll() is None and not (folder / "checkpoints" / "step-00000006").exists():
        time.sleep(0.005)
    kill_at(child, 0.05)
    assert shown(command(*options, folder=folder).metrics) == shown(reference.metrics)
    assert weights(folder) == weights(reference.folder)
    assert not half_written(folder)


TWO_WRITERS = """
import os, signal, sys
from pathlib import Path
import torch.distributed as dist
from tuneforge.artifacts import whole

root, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{root}/meeting", rank=rank, world_size=2)

def share(value):
    found = [None, None]
    dist.all_gather_object(found, value)
    return found

for step in (1, 2):
    def fill(folder):
        file = folder / str(rank)
        file.write_bytes(bytes(1000))
        if (rank, step) == (1, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return [file]

    whole.write(whole.path_of(root / "checkpoints", step), fill, whole.Ranks(rank, share))
"""


def test_a_process_killed_while_two_save_leaves_the_checkpoint_before_and_nobody_waits(tmp_path):
    command = [sys.executable, "-c", TWO_WRITERS, str(tmp_path)]
    children = [subprocess.Popen([*command, str(rank)], stderr=subprocess.DEVNULL) for rank in (0, 1)]
    assert children[1].wait(60) == -signal.SIGKILL
    assert children[0].wait(60) != 0
    assert half_written(tmp_path)
    whole.tidy(tmp_path / "checkpoints")
    assert not half_written(tmp_path)
    newest, damaged = whole.newest(tmp_path / "checkpoints")
    assert (newest, damaged) == (tmp_path / "checkpoints" / "step-00000001", {})


def half_written(folder: Path) -> list[Path]:
    """Checkpoints without a name."""
    return list(folder.glob("checkpoints/.step-*.tmp"))


def is_done(folder: Path) -> bool:
    """Whether the run came to its end; resume=auto would not go on with it."""
    record = folder / "run.json"
    return record.is_file() and read_json(record)["status"] == "done"


@pytest.fixture(scope="module")
def whole_runs() -> dict[str, Any]:
    """What is not killed, once for all that are."""
    return {}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.soak_full if n else pytest.mark.soak) for n in range(4)]
)
def test_six_kills_at_random_moments_of_one_run(command, tmp_path, whole_runs, seed):
    """One before its first step, four among its steps: twenty land in all. A sixth about the export may come late."""
    options = (*STEPS, "trainer.max_steps=40", "trainer.val_check_interval=4")
    if not whole_runs:
        started = time.monotonic()
        child = start(tmp_path / "timed", *options)
        wait_for_step(child, tmp_path / "timed", 1)
        whole_runs["start"] = time.monotonic() - started
        assert child.wait() == 0
        whole_runs["folder"] = tmp_path / "timed"
    folder, moments, reference = tmp_path / "killed", random.Random(seed), whole_runs["folder"]
    early = start(folder, *options)
    kill_at(early, moments.uniform(0.1, 0.9) * whole_runs["start"])
    assert early.returncode == -signal.SIGKILL
    for step in (10 * k + moments.randint(2, 7) for k in range(4)):
        child = start(folder, *options)
        wait_for_step(child, folder, step)
        kill_at(child, moments.uniform(0, 0.1))
        assert child.returncode == -signal.SIGKILL
    last = start(folder, *options)
    wait_for_step(last, folder, 40)
    kill_at(last, moments.uniform(0, 1))
    if not is_done(folder):
        assert command(*options, folder=folder).code == 0
    assert shown(read_metrics(folder / "metrics.jsonl")) == shown(read_metrics(reference / "metrics.jsonl"))
    assert weights(folder) == weights(reference)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("strategy", "kills"),
    [
        SOAK(["strategy=ddp"], [(4, "all"), (8, "parent"), (14, "saving")]),
        FULL(["strategy=fsdp"], [(8, "all")]),
        SOAK(["strategy=fsdp", *IN_PARTS], [(4, "saving"), (8, "parent"), (12, "saving")]),
        pytest.param(
            *(["strategy=deepspeed_zero3"], [(4, "saving"), (10, "all")]),
            marks=[pytest.mark.soak_full, needs_deepspeed],
        ),
    ],
    ids=["ddp", "fsdp", "fsdp in parts", "deepspeed_zero3"],
)
def test_two_processes_killed(command, tmp_path, strategy, kills):
    """All of them, also while they save, or the parent alone: then the others save and end, and train on for nobody."""
    options = (*STEPS, "trainer.max_steps=20", "batch.per_device=4", *strategy, "trainer.devices=2")
    reference, folder = command(*options), tmp_path / "killed"
    assert reference.code == 0, reference.err
    for at, how in kills:
        child = start(folder, *options)
        while child.poll() is None and not any(whole.step_of(c) >= at for c in whole.found(folder / "checkpoints")):
            time.sleep(0.01)
        while child.poll() is None and how == "saving" and not half_written(folder):
            time.sleep(0.0005)
        family = psutil.Process(child.pid).children(recursive=True)
        assert len(family) >= 2
        if how == "parent":
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            assert psutil.wait_procs(family, timeout=60)[1] == []
        else:
            kill_at(child, 0.0 if how == "saving" else 0.1)
    resumed = command(*options, folder=folder)
    assert resumed.code == 0, resumed.err
    assert shown(resumed.metrics) == shown(reference.metrics)
    assert weights(folder) == weights(reference.folder)
