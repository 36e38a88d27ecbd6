"""A signal ends a run cleanly, a second one at once, and run.json holds the code that the process ended with."""

import os
import signal
import subprocess
import sys
import time

import pytest

from helpers import SHORT, same_adapter, shown, signal_at
from tuneforge.artifacts import whole
from tuneforge.artifacts.folder import read_json

STEPS = (*SHORT, "samples.num=0", "trainer.max_steps=6", "trainer.val_check_interval=2")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_saves_and_ends_in_its_own_code(command, monkeypatch, number, code):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    handlers = signal.getsignal(number)
    signal_at(monkeypatch, 2, number)
    ran = command(*STEPS)
    assert ran.code == code, ran.err
    assert (ran.record["status"], ran.record["exit"]) == ("interrupted", code)
    assert whole.newest(ran.folder / "checkpoints")[0] is not None
    assert signal.getsignal(number) is handlers


@pytest.mark.parametrize("answer", [0, 1])
def test_under_slurm_sigusr1_queues_the_job_again(command, monkeypatch, tmp_path, answer):
    """Lightning must not do the same beside us: it would, under srun."""
    fake = tmp_path / "bin" / "scontrol"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "no permission" >&2\nexit {answer}\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    job = {"JOB_ID": "4711", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "tune"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    signal_at(monkeypatch, 2, signal.SIGUSR1)
    ran = command(*STEPS)
    assert ran.code == (143 if answer else 0), ran.err
    assert ran.record["exit"] == ran.code
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not list(ran.folder.rglob("*hpc*"))
    assert ("failed: no permission" in ran.out) == bool(answer)


def test_a_closed_terminal_is_heard_unless_nohup_asked_to_ignore_it(monkeypatch):
    from tuneforge.callbacks.signals import Stopped, heard

    before = signal.getsignal(signal.SIGHUP)
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(Stopped), heard():
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with heard():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_outside_of_training_is_heard_too(command, monkeypatch):
    """While the base is measured there is nothing to keep; while the result is, the last checkpoint is there."""
    from tuneforge.objectives.causal_lm import CausalLM

    reference = command(*STEPS)
    step, stop_at = CausalLM.validation_step, [0]

    def signalling(self, *args):
        if self.trainer.global_step == stop_at[0] and self.trainer.state.fn == "validate":
            stop_at[0] = -1
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *args)

    monkeypatch.setattr(CausalLM, "validation_step", signalling)
    before = command(*STEPS)
    assert before.code == 143
    assert "stopped before training" in before.out
    assert not before.folder.exists()
    stop_at[0] = 6
    after = command(*STEPS)
    assert after.code == 143
    assert (after.record["status"], after.record["exit"]) == ("interrupted", 143)
    assert command(*STEPS, f"resume={after.folder}").code == 0
    assert shown(after.metrics) == shown(reference.metrics)
    assert same_adapter(after.folder, reference.folder)


def test_a_second_signal_leaves_at_once_and_the_last_checkpoint_is_good(tmp_path):
    """Steps of a second or more, so that the second signal comes within the step that the first wants finished."""
    folder = tmp_path / "run"
    slow = ("batch.effective=64", "batch.per_device=1", "data.packing=false", "data.max_rows=128")
    options = (*STEPS, *slow, f"hydra.run.dir={folder}", f"output_root={tmp_path}")
    child = subprocess.Popen([sys.executable, "-m", "tuneforge", *options], stdout=subprocess.DEVNULL)
    try:
        while child.poll() is None and not list(folder.glob("checkpoints/step-*")):
            time.sleep(0.02)
        time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        assert child.wait(5) == -signal.SIGTERM  # 143 in a shell
    finally:
        child.kill()
    assert whole.newest(folder / "checkpoints")[0] is not None
    record = read_json(folder / "run.json")
    assert (record["status"], record["exit"]) == ("interrupted", 143)


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(28, "No space left on device")])
def test_what_ends_a_run_is_in_its_record(command, monkeypatch, error):
    from tuneforge.objectives.causal_lm import CausalLM

    def failing(self, batch, batch_idx):
        raise error

    monkeypatch.setattr(CausalLM, "training_step", failing)
    ran = command(*STEPS)
    assert ran.code == (2 if isinstance(error, OSError) else 1)
    record = read_json(ran.folder / "run.json")
    assert (record["status"], record["exit"]) == ("failed", ran.code)
