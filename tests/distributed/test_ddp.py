"""Two processes give what one gives."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers import SHORT
from tuneforge.artifacts import whole
from tuneforge.artifacts.folder import MARK, read_json, read_metrics


@pytest.mark.soak
@pytest.mark.parametrize(
    ("method", "effective", "per_device"),
    # 7 documents on two devices are micro-batches of 2, 2, 2 and 1; 3 of at most 1 leave one device without a document.
    [("lora", 7, 2), ("qlora", 3, 1), ("eva", 8, 2)],
)
def test_two_processes_train_as_one(command, method, effective, per_device):
    # Adam's first updates are about lr * sign(gradient): a large rate blows rounding up into the next steps' gradients.
    options = [
        *SHORT,
        f"method={method}",
        "task_recipe.dropout=0",
        "data.packing=false",
        # What EVA finds is the same in both processes, and as in one.
        *(["task_recipe.targets=[q_proj]"] if method == "eva" else []),
        f"batch.effective={effective}",
        "optim.lr=2e-4",
    ]
    one = command(*options, "batch.per_device=4")
    two = command(*options, f"batch.per_device={per_device}", "strategy=ddp", "trainer.devices=2")
    assert two.code == 0, two.err + two.out
    assert two.record["settled"]["world_size"] == 2
    assert one.record["settled"]["documents_per_step"] == two.record["settled"]["documents_per_step"] == effective
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    norms = [[m["train/grad_norm"] for m in ran.metrics if "train/grad_norm" in m] for ran in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    evals = [[m["eval/loss"] for m in ran.metrics if "eval/loss" in m] for ran in (one, two)]
    assert evals[1] == pytest.approx(evals[0], rel=1e-5)


STOPPED = (*SHORT, "samples.num=0", "trainer.max_steps=100", "trainer.val_check_interval=50", "batch.per_device=4")


@pytest.mark.soak
def test_two_processes_stop_at_the_same_step_and_go_on(command, tmp_path):
    """SIGTERM to the parent alone, as a cluster sends it."""
    folder = tmp_path / "run"
    options = (*STOPPED, "strategy=ddp", "trainer.devices=2")
    where = (f"hydra.run.dir={folder}", f"output_root={tmp_path / 'outputs'}")
    child = subprocess.Popen([sys.executable, "-m", "tuneforge", *options, *where], stdout=subprocess.DEVNULL)
    while child.poll() is None and len(read_metrics(folder / "metrics.jsonl")) < 3:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 143
    record = read_json(folder / "run.json")
    assert (record["status"], record["exit"]) == ("interrupted", 143)
    newest, damaged = whole.newest(folder / "checkpoints")
    assert newest is not None
    assert not damaged
    further = command(*options, f"trainer.max_steps={whole.step_of(newest) + 2}", f"resume={folder}")
    assert further.code == 0, further.err
    assert [m["step"] for m in read_metrics(folder / "metrics.jsonl") if "train/loss" in m] == list(
        range(1, whole.step_of(newest) + 3)
    )


@pytest.mark.soak
def test_a_save_that_fails_in_the_first_process_ends_both(command, tmp_path):
    """While it loads, a file is made where checkpoints should be."""
    folder = tmp_path / "run"

    def obstruct():
        while not (folder / MARK).exists():
            time.sleep(0.01)
        (folder / "checkpoints").write_text("")

    threading.Thread(target=obstruct, daemon=True).start()
    options = (*STOPPED, "trainer.val_check_interval=2", "strategy=ddp", "trainer.devices=2")
    ran = command(*options, folder=folder)
    assert ran.code == 2, ran.err
    assert ran.err.count("could not be written: Not a directory") == 1
    assert ran.record["exit"] == 2
