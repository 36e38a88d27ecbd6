"""A run that was stopped goes on as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from safetensors.torch import load_file

from helpers import SHORT
from tuneforge.artifacts.checkpoint_io import is_whole, newest_whole

STEPS = (*SHORT, "trainer.max_steps=8", "batch.per_device=1", "trainer.val_check_interval=2", "optim.lr=2e-3")


def interrupt_after(monkeypatch, steps: int) -> None:
    """Deliver SIGTERM to this process when the given optimizer step has run."""
    from tuneforge.objectives.causal_lm import CausalLM

    end = CausalLM.on_train_batch_end

    def signalling(self, *args):
        end(self, *args)
        if self.trainer.global_step == steps and not signalling.sent:
            signalling.sent = True
            os.kill(os.getpid(), signal.SIGTERM)

    signalling.sent = False
    monkeypatch.setattr(CausalLM, "on_train_batch_end", signalling)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(command, monkeypatch, steps):
    whole = command(*STEPS)
    interrupt_after(monkeypatch, steps)
    stopped = command(*STEPS)
    assert stopped.code == 143
    assert stopped.record["status"] == "interrupted"
    assert stopped.record["exit"] == 143
    resumed = command(*STEPS, f"resume={stopped.folder}")
    assert resumed.code == 0, resumed.err
    again = [json.loads(line) for line in (stopped.folder / "metrics.jsonl").read_text().splitlines()]

    def shown(metrics):
        drop = "train/tokens_per_s"
        return {(m["step"], "eval/loss" in m): {k: v for k, v in m.items() if k != drop} for m in metrics}

    assert shown(again) == shown(whole.metrics)
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (whole.folder, stopped.folder)]
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])


def test_auto_finds_the_unfinished_run_and_goes_on_in_its_folder(command, monkeypatch):
    interrupt_after(monkeypatch, 3)
    stopped = command(*STEPS, folder=None)
    moved = stopped.folder.parent / "outputs" / "day" / "time"
    moved.parent.mkdir(parents=True)
    stopped.folder.rename(moved)
    resumed = command(*STEPS, "resume=auto")
    assert resumed.code == 0
    assert f"resuming {moved}" in resumed.out
    assert json.loads((moved / "run.json").read_text())["status"] == "done"
    assert not resumed.folder.exists()


def test_auto_without_an_unfinished_run_starts_fresh_and_says_so(command):
    ran = command(*SHORT, "resume=auto")
    assert ran.code == 0
    assert "no unfinished run of this config, starting fresh" in ran.out


def test_a_changed_config_is_refused_with_what_changed(command, monkeypatch, refused):
    interrupt_after(monkeypatch, 3)
    stopped = command(*STEPS)
    said = refused(*STEPS, f"output_root={stopped.folder.parent}", "optim.lr=1e-3", f"resume={stopped.folder}")
    assert "optim.lr (0.002 -> 0.001)" in said


def test_a_damaged_newest_checkpoint_is_passed_over(command, monkeypatch):
    interrupt_after(monkeypatch, 5)
    stopped = command(*STEPS, "callbacks.checkpoints.keep_last=3")
    newest = newest_whole(stopped.folder / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert not is_whole(newest)
    resumed = command(*STEPS, "callbacks.checkpoints.keep_last=3", f"resume={stopped.folder}")
    assert resumed.code == 0
    assert "resuming" in resumed.out
    assert newest.name not in resumed.out


@pytest.mark.parametrize("wanted", ["nowhere", "README.md"])
def test_what_cannot_be_resumed_is_refused(refused, wanted):
    assert "neither a run folder" in refused(f"resume={wanted}")


@pytest.mark.soak
def test_kill_minus_nine_anywhere_is_survived(command, tmp_path):
    """SIGKILL at several moments of a child; each resume must end with the losses of the uninterrupted run."""
    whole = command(*STEPS)
    for delay in (0.0, 0.05, 0.2, 0.5):
        folder = tmp_path / f"killed{delay}"
        arguments = [*STEPS, f"hydra.run.dir={folder}", f"output_root={tmp_path / 'none'}"]
        child = subprocess.Popen([sys.executable, "-m", "tuneforge", *arguments], stdout=subprocess.DEVNULL)
        while child.poll() is None and not list(folder.glob("checkpoints/*.json")):
            time.sleep(0.02)
        threading.Event().wait(delay)
        child.kill()
        child.wait()
        resumed = command(*STEPS, f"resume={folder}")
        assert resumed.code == 0, resumed.err
        losses = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [m["train/loss"] for m in losses if "train/loss" in m] == whole.losses
