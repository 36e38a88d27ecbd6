"""Sweeps through the command line: what they leave, and trials that are pruned, fail or are killed."""

import signal
import subprocess
import sys
import time

import pytest
import yaml

from helpers import Swept, signal_at
from tuneforge.cli import run

LR = "optim.lr=tag(log, interval(1e-4, 1e-2))"


def test_a_grid_runs_every_combination_in_order(sweep):
    swept = sweep("optim.lr=1e-4,1e-2", "method.r=4,8")
    assert swept.code == 0, swept.said
    assert [(t.params["optim.lr"], t.params["method.r"]) for t in swept.trials] == [
        (1e-4, 4), (1e-4, 8), (1e-2, 4), (1e-2, 8),
    ]  # fmt: skip
    for trial in swept.trials:
        record = swept.record(trial.number)
        assert record["status"] == "done"
        assert record["overrides"][-3:-1] == trial.user_attrs["overrides"]
        assert trial.value == record["metrics"]["after"]["eval/loss"]
        assert sorted(trial.intermediate_values) == [1, 2, 3]
        assert trial.user_attrs["steps"] == 3
    # The best of the grid is the highest rate, which is said; the command and the option file are that config.
    best = swept.study.best_trial
    assert best.params["optim.lr"] == 1e-2
    assert f"python -m tuneforge {'model=hf'}" in swept.said
    assert swept.kept["status"] == "done"
    assert (swept.root / "report.html").is_file()


def test_the_best_trial_is_an_experiment(sweep, tmp_path, capfd):
    swept = sweep(LR, "method=lora,dora", "hydra.sweeper.n_trials=2", "hydra.sweeper.trial={data.max_length: 48}")
    assert swept.code == 0, swept.said
    best = swept.study.best_trial
    capfd.readouterr()
    assert run(["--config-dir", str(swept.root), "+experiment=best", "--cfg", "job"]) == 0
    config = yaml.safe_load(capfd.readouterr().out)
    assert config["optim"]["lr"] == best.params["optim.lr"]
    assert config["method"]["name"] == best.params["method"]
    # What makes trials cheap is no part of the answer.
    assert config["data"]["max_length"] == "auto"
    assert swept.record(best.number)["settled"]["max_length"] == 48


def test_pruned_trials_are_in_the_study_with_what_was_measured(sweep):
    # A rate that does nothing after two that learn: worse than their median at every evaluation.
    swept = sweep(
        *("optim.lr=1e-2,2e-2,1e-9", "hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2"),
    )
    assert swept.code == 0, swept.said
    assert swept.states() == ["COMPLETE", "COMPLETE", "PRUNED"]
    pruned = swept.trials[2]
    assert sorted(pruned.intermediate_values) == [1, 2]
    assert pruned.user_attrs["steps"] == 2
    assert (swept.record(2)["status"], swept.record(2)["exit"]) == ("pruned", 0)
    assert not (swept.root / "2" / "adapter").exists()
    assert "2 complete, 1 pruned; 8 optimizer steps" in swept.said


def test_a_trial_that_a_rule_refuses_costs_no_training_and_the_sweep_goes_on(sweep):
    swept = sweep("trainer.precision=16-mixed,auto")
    assert swept.code == 0, swept.said
    assert swept.states() == ["FAIL", "COMPLETE"]
    assert "trainer.precision" in swept.trials[0].user_attrs["reason"]
    assert swept.trials[0].user_attrs["steps"] == 0
    assert not (swept.root / "0").exists() or not (swept.root / "0" / "run.json").exists()


def test_too_many_failures_end_a_sweep(sweep):
    swept = sweep("data.path=/no/one,/no/two,/no/three,/no/four", "hydra.sweeper.max_failure_rate=0.25")
    assert swept.code == 3, swept.said
    assert swept.states() == ["FAIL", "FAIL", "WAITING", "WAITING"]
    assert "2 of 4 trials failed" in swept.said
    assert "No trial was completed" in (swept.root / "report.html").read_text()


def test_an_interrupted_sweep_goes_on_with_the_same_command_where_it_was(sweep, monkeypatch):
    command = ("method.r=4,8", "hydra.sweeper.trial={data.max_length: 48}")
    with monkeypatch.context() as patched:
        signal_at(patched, step=1, number=signal.SIGINT)
        swept = sweep(*command)
    assert swept.code == 130, swept.said
    assert swept.states() == ["RUNNING", "WAITING"]
    assert swept.kept["status"] == "interrupted"
    assert swept.record(0)["status"] == "interrupted"
    again = sweep(*command)
    assert again.code == 0, again.said
    assert again.states() == ["COMPLETE", "COMPLETE"]
    assert "sweep/0 from step-00000002" in again.said
    assert sorted(again.trials[0].intermediate_values) == [1, 2, 3]


def test_a_killed_sweep_is_found_and_ends_as_if_it_had_not_been(tmp_path, tiny, capfd, monkeypatch):
    command = ["-m", *tiny, LR, "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=3", "seed=3"]
    first, second = tmp_path / "killed", tmp_path / "whole"
    first.mkdir(), second.mkdir()
    child = subprocess.Popen([sys.executable, "-m", "tuneforge", *command], cwd=first, start_new_session=True)
    until = time.monotonic() + 200
    while not list(first.glob("outputs/sweeps/*/*/1/metrics.jsonl")):
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    child.kill()
    child.wait()
    roots = []
    for folder in (first, second):
        monkeypatch.chdir(folder)
        capfd.readouterr()
        assert run(command) == 0
        roots.append(next(folder.glob("outputs/sweeps/*/*/sweep.json")).parent)
    killed, whole = (Swept(0, root, "") for root in roots)
    # One folder: the same sweep went on. Each trial once, with what the sampler would have drawn without the kill.
    assert len(list(first.glob("outputs/sweeps/*/*"))) == 1
    assert killed.states() == ["COMPLETE"] * 3
    assert [t.params for t in killed.trials] == [t.params for t in whole.trials]
    assert [t.value for t in killed.trials] == [t.value for t in whole.trials]
    assert len({t.params["optim.lr"] for t in killed.trials}) == 3
    assert killed.trials[0].datetime_complete < killed.trials[1].datetime_complete


@pytest.mark.soak
def test_loss_and_forgetting_are_two_objectives(tmp_path, capfd, monkeypatch):
    """Real runs of the bundled model, whose own tasks are asked before and after."""
    monkeypatch.chdir(tmp_path)
    short = ("trainer.max_steps=2", "data.max_rows=64", "data.split.max_eval_rows=16", "batch.effective=8")
    code = run(["-m", "+sweep=loss_vs_forgetting", "hydra.sweep.dir=sweep", "hydra.sweeper.n_trials=2", *short])
    said = capfd.readouterr()
    assert code == 0, said
    swept = Swept(code, tmp_path / "sweep", said.out)
    assert swept.states() == ["COMPLETE", "COMPLETE"]
    for number, trial in enumerate(swept.trials):
        told = swept.record(number)
        falls = [task["fall"] for task in told["guards"]["forgetting_check"]["tasks"].values()]
        assert len(falls) == 2
        assert trial.values == pytest.approx([told["metrics"]["after"]["eval/loss"], max(falls)])


@pytest.mark.parametrize(
    ("happens", "reason"),
    [("out of memory", "ran out of memory"), ("not a number", "the last evaluation had a loss of nan")],
)
def test_a_trial_that_breaks_in_training_is_failed_with_its_reason_and_the_next_one_is_as_good(
    sweep, monkeypatch, happens, reason
):
    import torch

    from tuneforge.objectives.causal_lm import CausalLM

    whole = CausalLM.loss_sum

    def broken(self, batch):
        loss = whole(self, batch)
        if self.context.tree["method"]["r"] == 8 and self.trainer.global_step:
            if happens == "out of memory":
                raise torch.OutOfMemoryError("Tried to allocate 20.00 GiB")
            return loss if self.model.training else loss * float("nan")
        return loss

    monkeypatch.setattr(CausalLM, "loss_sum", broken)
    swept = sweep("method.r=4,8,16")
    assert swept.code == 0, swept.said
    assert swept.states() == ["COMPLETE", "FAIL", "COMPLETE"]
    assert reason in swept.trials[1].user_attrs["reason"]
    assert f"failed       trial 1: {swept.trials[1].user_attrs['reason']}" in swept.said
