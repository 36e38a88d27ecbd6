"""What is wrong with a sweep is said before its first trial, in under a second's work and with nothing written."""

import json

import optuna
import pytest

import tuneforge.samplers
from tuneforge.artifacts.folder import MARK

REFUSED = {
    "key-in-a-value": (["seed.x=1,2"], "seed.x (seed.x=1,2): has no keys in it: seed is a value", "sweep seed"),
    "long-range": (["seed=range(1,1e12)"], "more than 100,000 values", "interval(1, 1000000000000.0) has no steps"),
    "fine-range": (["optim.lr=range(0,1,1e-9)"], "more than 100,000 values", "interval(0, 1)"),
    "endless-range": (["seed=range(inf)"], "seed: Optuna cannot search seed=range(inf)", "must be finite numbers"),
    "infinite-interval": (["optim.lr=interval(nan,inf)"], "its ends must be finite numbers", "interval(low, high)"),
    "key": (["optim.lrr=1e-4,1e-3"], "optim.lrr (optim.lrr=1e-4,1e-3): there is no such key", "did you mean 'lr'"),
    "key-of-an-interval": (["optim.lrr=interval(1e-4, 1e-3)"], "optim.lrr (optim.lrr=interval(1e-4, 1e-3))", "'lr'"),
    "fixed-key": (["optim.lr=1e-4,1e-3", "sead=3"], "sead", "did you mean 'seed'"),
    "range": (
        ["optim.lr=interval(-1.0, 1.0)"],
        "optim.lr (optim.lr=interval(-1.0, 1.0)): must be a number > 0",
        "-1.0",
    ),
    "range-of-integers": (["method.r=interval(4.0, 8.0)"], "method.r", "must be an integer >= 1"),
    "choice": (["method.r=4,x"], "method.r (method.r=4,x): must be an integer", "'x'"),
    "option": (["method=lora,dorra"], "method (method=lora,dorra): there is no option 'dorra'", "did you mean 'dora'"),
    "grid": (
        ["optim.lr=interval(1e-5, 1e-3)", "hydra/sweeper/sampler=grid"],
        "optim.lr: is an interval",
        "range(low, high, step)",
    ),
    "measure": (["optim.lr=1e-4,1e-3", "hydra.sweeper.objective=eval/los"], "does not measure", "'eval/loss'"),
    "measure-of-another-objective": (["optim.lr=1,2", "hydra.sweeper.objective=eval/accuracy"], "does not measure", ""),
    "directions": (
        ["optim.lr=1e-4,1e-3", "hydra.sweeper.objective=[eval/loss,eval/perplexity]"],
        "2 objectives (eval/loss, eval/perplexity) have 1 directions",
        "hydra.sweeper.direction=[minimize,minimize]",
    ),
    "direction": (
        ["optim.lr=1,2", "hydra.sweeper.direction=maximize"],
        "eval/loss is better the other way",
        "minimize",
    ),
    "pruner-of-two": (
        [
            *("optim.lr=1e-4,1e-3", "hydra.sweeper.objective=[eval/loss,eval/perplexity]"),
            *("hydra.sweeper.direction=[minimize,minimize]", "hydra/sweeper/pruner=median"),
        ],
        "hydra/sweeper/pruner",
        "hydra/sweeper/pruner=none",
    ),
    "sampler": (["optim.lr=1,2", "hydra/sweeper/sampler=tpee"], "no option 'tpee'", "did you mean 'tpe'"),
    "sampler-option": (
        ["optim.lr=interval(1e-5, 1e-3)", "hydra/sweeper/sampler=tpe", "hydra.sweeper.sampler.multi=true"],
        "hydra.sweeper.sampler: optuna.samplers.TPESampler",
        "'multi'",
    ),
    "setting": (["optim.lr=1,2", "hydra.sweeper.n_trails=3"], "hydra.sweeper.n_trails", "did you mean 'n_trials'"),
    "storage": (
        ["optim.lr=1e-4,1e-3", "hydra.sweeper.storage=sqlite:////proc/study.db"],
        "cannot be opened",
        "sqlite:",
    ),
    "storage-url": (["optim.lr=1e-4,1e-3", "hydra.sweeper.storage=nonsense"], "hydra.sweeper.storage", "sqlite:"),
    "storage-password": (
        ["optim.lr=1e-4,1e-3", "hydra.sweeper.storage='postgresql://me:secret@host/studies'"],
        "postgresql://me:***@host/studies holds a password",
        "hydra.sweeper.storage=${oc.env:STUDY_URL}",
    ),
    "storage-variable": (
        ["optim.lr=1e-4,1e-3", "hydra.sweeper.storage=${oc.env:NO_SUCH_STUDY_URL}"],
        "hydra.sweeper.storage",
        "'NO_SUCH_STUDY_URL'",
    ),
    "sweep": (["+sweep=lora_quik"], "no option 'lora_quik'", "did you mean 'lora_quick'"),
    "workers": (
        ["optim.lr=1,2", "hydra/launcher=processes", "hydra.launcher.workers=two"],
        "workers: is 'two'",
        "from 1",
    ),
    "config": (["optim.lr=1,2", "--cfg", "job"], "a config for each trial", "--multirun"),
    "nothing": (["optim.lr=1e-4"], "nothing to vary", "+sweep=lora_quick"),
    "space": (["+hydra.sweeper.params={optim.lr: 'interval(1)'}"], "optim.lr", "interval(low, high)"),
    "reversed": (["optim.lr=interval(1e-3, 1e-5)"], "Optuna cannot search", "low below high"),
    "sampler-package": (["optim.lr=interval(1e-5, 1e-3)", "hydra/sweeper/sampler=gp"], "needs the package", "[sweep]"),
    "untrusted": (
        ["optim.lr=interval(1e-4, 1e-3)", "hydra.sweeper.custom_search_space=os.system"],
        "hydra.sweeper.custom_search_space",
        "not trusted",
    ),
    "untrusted-sampler": (
        ["optim.lr=interval(1e-4, 1e-3)", "hydra.sweeper.sampler._target_=os.getcwd"],
        "hydra.sweeper.sampler",
        "os.getcwd",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_sweep_that_cannot_be_is_refused_before_its_first_trial(name, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tuneforge.train.launch", lambda composed: pytest.fail("a trial ran"))
    monkeypatch.setitem(tuneforge.samplers._NEEDS, "GPSampler", "nothing_of_this_name")
    arguments, *wanted = REFUSED[name]
    said = refused("-m", *arguments)
    assert [w for w in wanted if w not in said] == [], said
    assert "secret" not in said
    assert [p for p in tmp_path.rglob("*") if p.is_file() and p.name not in (MARK, ".lock", "study.db")] == []


def test_there_are_that_many_ways():
    assert len(REFUSED) == 34


def test_another_sweep_in_the_folder_is_refused(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    kept = {"objectives": ["eval/loss"], "directions": ["minimize"], "fixed": [], "trial": [], "config_dirs": []}
    kept |= {"identity": "another", "study": "s", "storage": "", "status": "done", "pid": 1, "written": "then"}
    (tmp_path / "there" / "sweep.json").write_text(json.dumps(kept))
    said = refused("-m", "optim.lr=1e-4,1e-3", "hydra.sweep.dir=there")
    assert "nothing is overwritten" in said
    said = refused("report", str(tmp_path))
    assert "is not the folder of a sweep" in said


@pytest.mark.parametrize("database", ["missing", "empty", "of another"])
def test_a_report_without_its_database_is_refused_and_changes_no_file(refused, tmp_path, database):
    kept = {k: [] for k in ("fixed", "trial", "config_dirs")}
    kept |= {"identity": "x", "study": "s", "storage": "", "status": "done", "pid": 1, "written": "then"}
    kept |= {"objectives": ["eval/loss"], "directions": ["minimize"]}
    (tmp_path / "sweep.json").write_text(json.dumps(kept))
    (tmp_path / "report.html").write_text("the page of the sweep")
    if database == "empty":
        (tmp_path / "study.db").touch()
    elif database == "of another":
        optuna.create_study(storage=f"sqlite:///{tmp_path / 'study.db'}", study_name="another")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    said = refused("report", str(tmp_path))
    assert "has no results to read" in said
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
