"""hydra/launcher=processes: several trials at a time, each in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import psutil
import pytest
from omegaconf import OmegaConf

from tuneforge.artifacts.folder import write_json
from tuneforge.cli import run
from tuneforge.errors import TuneforgeError
from tuneforge.study import processes
from tuneforge.study.processes import ProcessLauncher, as_told, outcome_file
from tuneforge.study.run import Outcome

TWO = ("hydra/launcher=processes", "hydra.launcher.workers=2", "hydra.sweep.dir=sweep")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, where sweeps go."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def trials(root):
    kept = json.loads((root / "sweep.json").read_text())
    return optuna.load_study(study_name=kept["study"], storage=f"sqlite:///{root / 'study.db'}").trials


def workers(of: psutil.Process) -> dict[int, psutil.Process]:
    """Number of the trial -> its process."""
    found = {}
    for child in of.children():
        try:
            line = child.cmdline()
        except psutil.Error:
            continue
        if "tuneforge.study.worker" in line:
            found[int(Path(line[-1]).stem)] = child
    return found


def when(condition, seconds=300):
    """Wait for it."""
    until = time.monotonic() + seconds
    while not (there := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return there


def test_two_at_a_time_and_one_that_is_killed_or_refused_leaves_the_others_alone(here, tiny, capfd):
    def kill_the_first():
        when(lambda: workers(psutil.Process()).get(0), 60).kill()

    # What other tests left, such as wandb's service.
    before = set(psutil.Process().children())
    killer = threading.Thread(target=kill_the_first, daemon=True)
    killer.start()
    code = run(["-m", *tiny, *TWO, "method.r=4,8", "data.max_length=64,48"])
    killer.join()
    said = capfd.readouterr()
    assert code == 0, said
    killed, *others = trials(here / "sweep")
    assert killed.state.name == "FAIL"
    assert killed.user_attrs["reason"].startswith("its process was ended by SIGKILL, mostly because the host's memory")
    assert [t.state.name for t in others] == ["COMPLETE"] * 3
    assert [(t.params["method.r"], t.params["data.max_length"]) for t in others] == [(4, 48), (8, 64), (8, 48)]
    # A place is filled as soon as it is free, and never by two.
    spans = sorted((t.datetime_start, t.datetime_complete) for t in (killed, *others))
    assert spans[1][0] < spans[0][1]
    assert all(sum(start <= t < end for start, end in spans) <= 2 for t, _ in spans)
    for trial in others:
        record = json.loads((here / "sweep" / str(trial.number) / "run.json").read_text())
        assert trial.value == record["metrics"]["after"]["eval/loss"]
        assert sorted(trial.intermediate_values) == [1, 2, 3]
        assert "3 steps of 4 documents" in (here / "sweep" / "logs" / f"{trial.number}.log").read_text()
    # What the trials print does not run together on the console.
    assert "steps of 4 documents" not in said.out + said.err
    # This process can inherit what a killed trial had started, and does not wait for it.
    left = set(psutil.Process().children()) - before
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    "ended",
    [
        TuneforgeError("unknown-measure", "measures no such thing", path="hydra.sweeper.objective", fix="did you mean"),
        Outcome("complete", (1.5, 2.0), steps=7),
        Outcome("failed", reason="loss is nan", code=3, steps=2),
    ],
    ids=lambda ended: type(ended).__name__,
)
def test_what_came_of_a_trial_reaches_the_sweep(tmp_path, ended):
    handover = tmp_path / "0.json"
    write_json(outcome_file(handover), as_told(ended))
    came = ProcessLauncher()._outcome(SimpleNamespace(handover=handover))
    assert as_told(came) == as_told(ended)
    assert type(came) is type(ended)


def test_a_signal_that_interrupts_no_trial_ends_the_sweep_too(here, tiny, capfd, monkeypatch):
    def start(self, number, job):
        """The trial is at its end as the signal comes."""
        write_json(here / "sweep" / str(number) / "run.json", {"status": "done", "overrides": ["method.r=4"]})
        self._over[number] = Outcome("complete", (1.0,), steps=3)
        self.stopped = 143

    monkeypatch.setattr(ProcessLauncher, "start", start)
    assert run(["-m", *tiny, *TWO, "hydra.launcher.workers=1", "method.r=4,8,16"]) == 143, capfd.readouterr()
    assert [t.state.name for t in trials(here / "sweep")] == ["COMPLETE", "WAITING", "WAITING"]
    assert json.loads((here / "sweep" / "sweep.json").read_text())["status"] == "interrupted"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.soak_full),
        pytest.param(signal.SIGKILL, -9, marks=pytest.mark.soak),
    ],
)
def test_a_sweep_that_is_ended_ends_its_trials_and_goes_on(here, tiny, capfd, number, code):
    command = ["-m", *tiny, *TWO, "method.r=4,8,16", "trainer.max_steps=40", "trainer.val_check_interval=2"]
    sweep = subprocess.Popen([sys.executable, "-m", "tuneforge", *command], start_new_session=True)
    root = here / "sweep"
    when(lambda: all(list((root / str(i)).glob("checkpoints/step-*")) for i in (0, 1)))
    children = workers(psutil.Process(sweep.pid))
    assert set(children) == {0, 1}
    sweep.send_signal(number)
    assert sweep.wait(60) == code
    psutil.wait_procs(children.values(), timeout=60)
    assert not any(child.is_running() for child in children.values())
    # Its parent's death is a SIGTERM to a trial.
    records = [json.loads((root / str(i) / "run.json").read_text()) for i in (0, 1)]
    assert [r["status"] for r in records] == ["interrupted"] * 2
    assert run(command) == 0, capfd.readouterr()
    assert [t.state.name for t in trials(root)] == ["COMPLETE"] * 3
    assert [sorted(t.intermediate_values) for t in trials(root)] == [list(range(1, 21))] * 3
    assert "from step-" in (root / "logs" / "0.log").read_text()


def launcher(monkeypatch, gpus, workers=None, devices="auto", accelerator="auto"):
    """One that is set up on a machine with so many GPUs."""
    monkeypatch.setattr(processes, "_gpus", lambda: gpus)
    made = ProcessLauncher(workers)
    config = OmegaConf.create({"trainer": {"devices": devices, "accelerator": accelerator}})
    made.setup(hydra_context=SimpleNamespace(config_loader=None), task_function=None, config=config)
    return made


def test_every_trial_has_its_own_gpus(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *_, env, **__: started.append(env["CUDA_VISIBLE_DEVICES"]))
    dealt = launcher(monkeypatch, ["4", "5", "6", "7", "GPU-8"], devices=2)
    assert dealt.room() == dealt.workers == 2
    for gpus in list(dealt._free):
        dealt._spawned(tmp_path / "0.json", gpus, tmp_path / "0.log")
    assert started == ["4,5", "6,7"]
    assert launcher(monkeypatch, ["0", "1", "2"]).workers == 3
    assert launcher(monkeypatch, ["0", "1", "2"], workers=2).workers == 2
    assert launcher(monkeypatch, [], workers=5).workers == 5
    assert launcher(monkeypatch, []).workers == max(1, os.cpu_count() // 2)
    assert launcher(monkeypatch, ["0"], workers=3, accelerator="cpu").workers == 3


def test_more_workers_than_gpus_are_refused(monkeypatch):
    with pytest.raises(TuneforgeError) as refused:
        launcher(monkeypatch, ["0", "1", "2"], workers=2, devices=2)
    (problem,) = refused.value.problems
    assert problem.path == "hydra.launcher.workers"
    assert problem.fix == "hydra.launcher.workers=1"
    with pytest.raises(TuneforgeError, match="a whole number from 1"):
        ProcessLauncher(0)


def test_gpus_have_the_names_they_were_given(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert processes._gpus() == ["3", "5"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert processes._gpus() == ["0", "1"]


@pytest.mark.soak
def test_hydras_own_sweeper_can_use_it(here, tiny, capfd):
    code = run(["-m", *tiny, *TWO, "hydra/sweeper=basic", "method.r=4,8", "trainer.max_steps=1"])
    assert code == 0, capfd.readouterr()
    for number, rank in enumerate((4, 8)):
        record = json.loads((here / "sweep" / str(number) / "run.json").read_text())
        assert record["status"] == "done"
        assert f"method.r={rank}" in record["overrides"]


@pytest.mark.soak_full
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["joblib", "submitit_local"])
def test_launchers_of_hydra_take_several_trials_at_a_time(here, tiny, capfd, name):
    two = ("hydra.sweeper.n_jobs=2", *(["hydra.launcher.n_jobs=2"] if name == "joblib" else []))
    code = run(["-m", *tiny, f"hydra/launcher={name}", *two, "hydra.sweep.dir=sweep", "method.r=4,8"])
    assert code == 0, capfd.readouterr()
    assert [t.state.name for t in trials(here / "sweep")] == ["COMPLETE"] * 2
    first, second = trials(here / "sweep")
    assert sorted(first.intermediate_values) == sorted(second.intermediate_values) == [1, 2, 3]
    times = [json.loads((here / "sweep" / str(i) / "run.json").read_text()) for i in (0, 1)]
    assert times[1]["started"] <= times[0]["written"]
