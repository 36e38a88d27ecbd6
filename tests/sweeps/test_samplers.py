"""How spaces are searched: samplers, objectives, conditional spaces, seeds. A formula stands in for the runs."""

import json
import math

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution

from tuneforge.cli import run
from tuneforge.study.answer import _end


@pytest.fixture
def sweep(tmp_path, capfd, monkeypatch):
    """Sweep with runs whose eval loss is lowest at a rate of 1e-3 and a rank of 16; returns the study."""
    monkeypatch.chdir(tmp_path)

    def launch(composed):
        config = composed.config
        rank = composed.tree["method"].get("r", 1)
        loss = abs(math.log10(config.optim.lr) + 3) + abs(math.log2(rank) - 4) / 4 + config.seed / 1000
        after = {"eval/loss": loss, "eval/perplexity": float(rank)}
        composed.run_dir.mkdir(parents=True, exist_ok=True)
        record = {"status": "done", "metrics": {"after": after}, "overrides": composed.overrides}
        (composed.run_dir / "run.json").write_text(json.dumps(record))
        return 0

    monkeypatch.setattr("tuneforge.train.launch", launch)

    def call(*arguments, folder="sweep"):
        capfd.readouterr()
        code = run(["-m", f"hydra.sweep.dir={folder}", *arguments])
        said = capfd.readouterr()
        assert code == 0, said
        kept = json.loads((tmp_path / folder / "sweep.json").read_text())
        study = optuna.load_study(study_name=kept["study"], storage=f"sqlite:///{tmp_path / folder / 'study.db'}")
        study.said = said.out
        return study

    return call


LR = "optim.lr=tag(log, interval(1e-5, 1e-1))"


@pytest.mark.parametrize("name", ["random", "tpe", "cmaes", "nsgaii", "gp", "qmc", "auto"])
def test_a_sampler_searches(name, sweep):
    if name in ("cmaes", "gp", "qmc"):
        pytest.importorskip("cmaes" if name == "cmaes" else "scipy")
    study = sweep(LR, "method.r=4,8,16,32", f"hydra/sweeper/sampler={name}", "hydra.sweeper.n_trials=3")
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert len({t.params["optim.lr"] for t in study.trials}) == 3
    assert all(1e-5 <= t.params["optim.lr"] <= 1e-1 for t in study.trials)


def test_two_objectives_end_in_the_trials_that_none_beats(sweep, tmp_path):
    study = sweep(
        *(LR, "method.r=4,16", "hydra/sweeper/sampler=nsgaii", "hydra.sweeper.n_trials=3"),
        *("hydra.sweeper.objective=[eval/loss,eval/perplexity]", "hydra.sweeper.direction=[minimize,minimize]"),
    )
    assert len(study.directions) == 2
    assert all(len(t.values) == 2 for t in study.trials)
    front = study.best_trials
    assert study.said.count("one best" if len(front) > 1 else "best") == len(front)
    assert "parallel" in (tmp_path / "sweep" / "report.html").read_text()


def test_a_conditional_space_asks_only_where_there_is_such_a_knob(sweep):
    study = sweep("+sweep=methods", "hydra.sweeper.n_trials=6", "hydra/sweeper/sampler=random", "seed=5")
    methods = {t.params["method"] for t in study.trials}
    assert methods & {"lora", "rslora", "dora"}
    assert methods & {"full", "ia3", "vera"}
    for trial in study.trials:
        assert ("method.r" in trial.params) == (trial.params["method"] in ("lora", "rslora", "dora"))
        assert [t.split("=")[0] for t in trial.user_attrs["overrides"]] == list(trial.params)


def test_each_seed_of_a_trial_is_a_run_and_its_value_their_mean(sweep, tmp_path):
    study = sweep("optim.lr=1e-3,1e-2", "method.r=16", "hydra.sweeper.seeds=[10,30]")
    assert [t.value for t in study.trials] == pytest.approx([0.02, 1.02])
    assert sorted(p.name for p in (tmp_path / "sweep" / "1").iterdir()) == ["seed-10", "seed-30"]


def test_values_at_an_end_of_their_range_are_pointed_out_and_what_mattered_is_told(sweep, tmp_path):
    study = sweep("optim.lr=1e-6,1e-5,1e-4", "method.r=4,8,16,32")
    assert "optim.lr=1e-4 is at the upper end of its range" in study.said
    assert _end(FloatDistribution(0.0, 1.0), 0.0) == ""
    assert _end(CategoricalDistribution([0.0, 0.1, 0.2]), 0.0) == ""
    assert _end(CategoricalDistribution([1, 2, 4]), 1) == "lower end"
    assert "method.r" not in study.said.partition("at the edge")[2].partition("\n")[0]
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert "PED-ANOVA" in page
    assert "<script src" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_finished_sweep_goes_on_with_more_trials_in_its_folder(sweep):
    before = sweep(LR, "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random").trials
    after = sweep(LR, "hydra.sweeper.n_trials=4", "hydra/sweeper/sampler=random")
    assert [t.params for t in after.trials][:2] == [t.params for t in before]
    assert len(after.trials) == 4
    assert len({t.params["optim.lr"] for t in after.trials}) == 4


def test_what_ships_searches_and_its_best_is_an_option(sweep, tmp_path, capfd):
    for name in ("lora_quick", "lr_rank", "batch_lr"):
        study = sweep(f"+sweep={name}", "hydra.sweeper.n_trials=2", folder=name)
        assert len(study.trials) >= 2
        capfd.readouterr()
        assert run(["--config-dir", str(tmp_path / name), "+experiment=best", "--cfg", "job"]) == 0
        config = yaml.safe_load(capfd.readouterr().out)
        assert config["trainer"]["max_steps"] is None
        assert config["method"]["name"] == "lora"


def test_a_rate_is_searched_around_the_one_that_the_config_has(sweep, capfd):
    for options, rate in (([], 2e-3), (["optim=lion"], 4e-4), (["task_recipe=domain"], 5e-4)):
        study = sweep("+sweep=lora_quick", *options, "hydra.sweeper.n_trials=1", folder=str(rate))
        found = study.trials[0].distributions["optim.lr"]
        assert (found.low, found.high) == pytest.approx((0.25 * rate, 5 * rate)), options
        assert found.log
    typed = sweep("+sweep=lora_quick", "optim.lr=1e-4", "hydra.sweeper.n_trials=1", folder="typed")
    assert "optim.lr" not in typed.trials[0].params


def test_hydras_own_sweeper_works_too(tmp_path, capfd, monkeypatch, sweep):
    from tuneforge import train

    ran = []
    launch = train.launch
    monkeypatch.setattr(
        "tuneforge.train.launch", lambda composed: ran.append(composed.run_dir.name) or launch(composed)
    )
    assert run(["-m", "optim.lr=1e-4,1e-3", "hydra/sweeper=basic", "hydra.sweep.dir=plain"]) == 0
    assert ran == ["0", "1"]
