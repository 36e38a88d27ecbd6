"""Processes that torchrun or srun started: one composes, all run the same, and they end together."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

import fork_server
from helpers import SHORT
from tuneforge.artifacts.claim import NAME as LOCK
from tuneforge.artifacts.folder import read_json, read_metrics

# Each of these pairs of processes takes 10 seconds and more.
SOAK = partial(pytest.param, marks=pytest.mark.soak)

TRAINED = (
    *SHORT,
    "samples.num=0",
    "task_recipe.dropout=0",
    "data.packing=false",
    "batch.effective=8",
    "optim.lr=2e-4",
    "trainer.val_check_interval=2",
)

# The command, in which process 1 meets with an accident at a step, once.
ACCIDENT = """
import os, pathlib, signal, sys
from tuneforge.console import quiet_libraries
quiet_libraries()
from tuneforge.objectives.causal_lm import CausalLM
marker, kind, step = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
end = CausalLM.on_train_batch_end
def ending(self, *args):
    end(self, *args)
    if self.global_rank == 1 and self.trainer.global_step == step and not marker.exists():
        marker.touch()
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("an accident")
CausalLM.on_train_batch_end = ending
from tuneforge.cli import run
sys.exit(run(sys.argv[4:]))
"""


@dataclass
class Ended:
    """A process that ended."""

    code: int
    out: str
    err: str


def free_port() -> int:
    """A port that nothing listens at; a store of torch takes it a moment later."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port


def environment(**variables: str) -> dict[str, str]:
    """One thread a process, and the packages of this interpreter."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **variables}


def srun(options, *, tmp_path, script=("-m", "tuneforge"), second=None) -> list[Ended]:
    """Two processes with the variables that srun gives; the second may run in a folder of its own."""
    port, children = free_port(), []
    for rank in range(2):
        slurm = {
            "JOB_ID": "4711",
            "STEP_ID": "0",
            "NTASKS": "2",
            "STEP_NUM_TASKS": "2",
            "JOB_NAME": "tune",
            "PROCID": str(rank),
            "LOCALID": "0",
            "NODEID": str(rank),
            "NNODES": "2",
            "STEP_TASKS_PER_NODE": "1(x2)",
            "STEP_NODELIST": "127.0.0.1,127.0.0.2",
        }
        variables = {f"SLURM_{k}": v for k, v in slurm.items()} | {"MASTER_PORT": str(port)}
        command = [sys.executable, *script, *options]
        children.append(
            fork_server.Popen(
                command,
                env=environment(**variables),
                cwd=second if rank and second else tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [child.communicate(timeout=280) for child in children]
    return [Ended(c.returncode, out, err) for c, (out, err) in zip(children, said, strict=True)]


def torchrun(arguments, options, *, script=("-m", "tuneforge")) -> "subprocess.Popen[str]":
    """torchrun with a number of processes here."""
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, *script, *options]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(folder: Path) -> list[float]:
    """Of the train steps."""
    return [m["train/loss"] for m in read_metrics(folder / "metrics.jsonl") if "train/loss" in m]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses of one process."""
    from tuneforge.cli import run

    root = tmp_path_factory.mktemp("alone")
    assert run([*TRAINED, "batch.per_device=4", f"output_root={root}", f"hydra.run.dir={root / 'run'}"]) == 0
    return losses(root / "run")


@pytest.mark.soak
def test_two_machines_under_torchrun_train_as_one_process(alone, tmp_path):
    where = (f"output_root={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")
    meet = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}")
    nodes = [torchrun([*meet, f"--node-rank={n}"], [*TRAINED, "batch.per_device=2", *where]) for n in (0, 1)]
    said = [node.communicate(timeout=200) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-5)
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["exit"], record["settled"]["world_size"]) == ("done", 0, 2)
    assert not (tmp_path / "run" / LOCK).exists()
    # The second machine has nothing to say, and no library has.
    assert said[1] == ("", "")
    assert said[0][1] == ""
    assert "GLOBAL_RANK" not in said[0][0]


@pytest.mark.soak
def test_two_tasks_under_srun_train_as_one_process(alone, tmp_path):
    where = (f"output_root={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")
    first, second = srun([*TRAINED, "batch.per_device=2", *where], tmp_path=tmp_path)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert losses(tmp_path / "run") == pytest.approx(alone, rel=1e-5)
    assert (second.out, second.err, first.err) == ("", "", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["optim.lrr=1"], "did you mean 'lr'"),
        SOAK(["--colour"], "there is no flag --colour"),
        SOAK(["data=file", "data.path=nowhere.jsonl"], "nowhere.jsonl"),
        SOAK(["trainer.devices=3"], "the launcher started 1 processes on each machine"),
        (["strategy=single"], "single is one process on one device, and the launcher started 2"),
        SOAK(["-m", "seed=1,2"], "each process would sweep for itself"),
    ],
)
def test_what_cannot_run_is_told_once_and_ends_all_in_its_code(tmp_path, options, said):
    first, second = srun(options, tmp_path=tmp_path)
    assert (first.code, second.code) == (2, 2), first.err + second.err
    assert first.err.startswith("error: ")
    assert said in first.err
    assert first.err.count("error: ") == 1
    assert second.err + second.out == ""
    assert list(tmp_path.iterdir()) == []


def test_machines_must_have_the_same_rows_and_see_the_folder(tmp_path):
    """Two folders stand for the disks of two machines."""
    disks = [tmp_path / "one", tmp_path / "two"]
    for disk, answer in zip(disks, ("yes", "no"), strict=True):
        disk.mkdir()
        lines = [f'{{"prompt": "{i}?", "completion": "{answer}"}}\n' for i in range(40)]
        (disk / "rows.jsonl").write_text("".join(lines))
    options = ["data=file", "data.path=rows.jsonl"]
    first, second = srun(options, tmp_path=disks[0], second=disks[1])
    assert (first.code, second.code, second.err) == (2, 2, "")
    assert "error: process 1 of 2 on " in first.err
    assert "has rows of data.path " in first.err
    (disks[1] / "rows.jsonl").unlink()
    first, _ = srun(options, tmp_path=disks[0], second=disks[1])
    assert "rows.jsonl" in first.err
    assert "(process 1 of 2 on " in first.err
    (disks[1] / "rows.jsonl").write_text((disks[0] / "rows.jsonl").read_text())
    first, _ = srun(options, tmp_path=disks[0], second=disks[1])
    assert "does not see outputs/" in first.err
    assert [p.name for p in disks[0].iterdir()] == ["rows.jsonl"]


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["raised", "killed"])
def test_a_process_that_fails_ends_all_and_is_named(tmp_path, kind):
    where = (f"output_root={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")
    script = ["-c", ACCIDENT, str(tmp_path / "marker"), kind, "3"]
    first, second = srun([*TRAINED, "batch.per_device=2", *where], tmp_path=tmp_path, script=script)
    record = read_json(tmp_path / "run" / "run.json")
    assert (first.code, record["status"], record["exit"]) == (1, "failed", 1)
    if kind == "killed":
        assert second.code == -signal.SIGKILL
        assert "error: another process of this run is gone" in first.err
        assert "Traceback" not in first.err
    else:
        assert second.code == 1
        assert "RuntimeError: an accident" in second.err
        assert "this was process 1 of 2 on " in second.err
        assert first.err == ""


@pytest.mark.soak
def test_torchrun_starts_a_run_again_and_it_goes_on(alone, tmp_path):
    """A folder by the second, as without options: the second start finds the first one's."""
    path = tmp_path / "accident.py"
    path.write_text(ACCIDENT)
    script = [str(path), str(tmp_path / "marker"), "killed", "3"]
    meet = ("--standalone", "--nproc-per-node=2", "--max-restarts=1")
    agent = torchrun(meet, [*TRAINED, "batch.per_device=2", f"output_root={tmp_path / 'outputs'}"], script=script)
    out, err = agent.communicate(timeout=280)
    assert agent.returncode == 0, out + err
    assert "torchrun has started this run again: going on as with resume=auto" in out
    assert "from step-00000002" in out
    (folder,) = (p.parent for p in (tmp_path / "outputs").rglob("run.json"))
    assert losses(folder) == pytest.approx(alone, rel=1e-5)
    assert read_json(folder / "run.json")["exit"] == 0


@pytest.mark.parametrize("rank", [SOAK(0), 1])
def test_our_own_processes_end_together_when_one_is_killed(tmp_path, rank):
    options = (*TRAINED, "trainer.max_steps=500", "trainer.devices=2", "strategy=ddp", "batch.per_device=2")
    where = (f"output_root={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}")
    command = [sys.executable, "-m", "tuneforge", *options, *where]
    child = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while child.poll() is None and len(losses(tmp_path / "run")) < 2:
        time.sleep(0.05)
    family = psutil.Process(child.pid).children(recursive=True)
    # Started in the order of their ranks.
    workers = [p for p in psutil.Process(child.pid).children() if "tuneforge.worker" in " ".join(p.cmdline())]
    assert len(workers) == 2
    sorted(workers, key=lambda p: p.create_time())[rank].kill()
    _, err = child.communicate(timeout=60)
    assert child.returncode == 1
    assert f"error: process {rank} of 2 was ended by SIGKILL" in err
    assert "Traceback" not in err
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    record = read_json(tmp_path / "run" / "run.json")
    assert (record["status"], record["exit"]) == ("failed", 1)
    assert not (tmp_path / "run" / LOCK).exists()
