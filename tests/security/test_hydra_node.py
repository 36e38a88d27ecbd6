"""Hydra's own node takes a list of keys: whatever else is refused, typed or in a file, and nothing of it happens."""

import pytest
from omegaconf import OmegaConf

from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.front import front
from tuneforge.study.command import _check_params

CALLBACK = "{attack: {_target_: canary_module.run}}"
TYPED = {
    "callbacks": f"hydra.callbacks={CALLBACK}",
    "callbacks-add": f"+hydra.callbacks={CALLBACK}",
    "callbacks-force": "++hydra.callbacks.attack._target_=canary_module.run",
    "job_logging": "hydra.job_logging={version: 1, handlers: {x: {class: canary_module.run}}}",
    "job_logging-group": "hydra/job_logging=default",
    "hydra_logging-group": "hydra/hydra_logging=default",
    "help-group": "hydra/help=default",
    "env_set": "hydra.job.env_set={CANARY: x}",
    "env_set-force": "++hydra.job.env_set.CANARY=x",
    "env_copy": "hydra.job.env_copy=[CANARY]",
    "chdir": "hydra.job.chdir=true",
    "name": "hydra.job.name=x",
    "searchpath": "hydra.searchpath=[pkg://canary_module]",
    "searchpath-file": "hydra.searchpath=[file:///tmp]",
    "launcher-target": "hydra.launcher._target_=canary_module.run",
    "launcher-setup": "+hydra.launcher.setup=[touch x]",
    "launcher-newline": 'hydra.launcher.partition="gpu\\ntouch x"',
    "launcher-interpolation": "hydra.launcher.partition=${oc.env:CANARY}",
    "sweeper-target": "hydra.sweeper._target_=canary_module.run",
    "sweeper-recursive": "+hydra.sweeper._recursive_=true",
    "output_subdir": "hydra.output_subdir=/tmp/x",
    "mode": "hydra.mode=MULTIRUN",
    "verbose": "hydra.verbose=true",
    "whole": "hydra={callbacks: {a: {_target_: canary_module.run}}}",
    "delete": "~hydra.job",
    "delete-group": "~hydra/launcher",
    "moved": "+callbacks@hydra.callbacks=default",
    "moved-inside": "+optim@hydra.job.env_set=adamw",
    "runtime": "hydra.runtime.output_dir=/tmp/x",
}


def refusal(*overrides, dirs=()):
    with pytest.raises(TuneforgeError) as raised:
        compose(overrides, dirs)
    return raised.value.problems


@pytest.mark.parametrize("name", TYPED)
def test_a_typed_key_of_hydras_is_refused(name, canary):
    (problem,) = refusal(TYPED[name])
    assert problem.code == "hydra-key"
    assert problem.path.startswith("hydra")
    assert problem.origin == f"command line: {TYPED[name]}"
    assert problem.fix


FILES = {
    "key": "hydra:\n  callbacks:\n    attack: {_target_: canary_module.run}\n",
    "environment": "hydra:\n  job:\n    env_set: {CANARY: x}\n",
    "searchpath": "hydra:\n  searchpath: ['pkg://canary_module']\n",
    "choice": "defaults:\n  - override /hydra/job_logging: default\n",
    "choice-optional": "defaults:\n  - optional /hydra/hydra_logging: colorlog\n",
    "moved": "defaults:\n  - /callbacks@hydra.callbacks: default\n",
    "interpolated": "hydra: ${trainer}\n",
    "launcher": "hydra:\n  launcher: {_target_: canary_module.run}\n",
    "dotted": "hydra.callbacks: {}\n",
    "merged": "x: &x\n  callbacks: {a: {_target_: canary_module.run}}\nhydra:\n  <<: *x\n",
}


@pytest.mark.parametrize("name", FILES)
def test_an_option_file_cannot_set_it_either(name, canary, tmp_path):
    (tmp_path / "dir" / "experiment").mkdir(parents=True)
    file = tmp_path / "dir" / "experiment" / "mine.yaml"
    file.write_text(f"# @package _global_\n{FILES[name]}")
    problems = refusal("+experiment=mine", dirs=[tmp_path / "dir"])
    assert {p.code for p in problems} == {"hydra-key"}
    assert str(file) in problems[0].origin


def test_a_header_or_a_folder_does_not_move_a_file_into_it(canary, tmp_path):
    files = {
        "experiment/header.yaml": "# @package hydra.callbacks\nattack: {_target_: canary_module.run}\n",
        "experiment/global.yaml": "# @package _global_.hydra\ncallbacks: {}\n",
        "hydra/callbacks/mine.yaml": "attack: {_target_: canary_module.run}\n",
        "hydra/launcher/mine.yaml": "_target_: canary_module.run\n",
        "hydra/sweeper/mine.yaml": "_target_: canary_module.run\n",
        "hydra/launcher/moved.yaml": "defaults: ['/callbacks@x: default']\n",
    }
    for name, text in files.items():
        (tmp_path / "dir" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "dir" / name).write_text(text)
    for choice in ("+experiment=header", "hydra/callbacks=mine", "hydra/launcher=mine", "hydra/sweeper=mine"):
        assert {p.code for p in refusal(choice, dirs=[tmp_path / "dir"])} == {"hydra-key"}, choice
    refusal("+experiment=global", dirs=[tmp_path / "dir"])
    refusal("hydra/launcher=moved", dirs=[tmp_path / "dir"])


@pytest.mark.parametrize(
    "name", ["callbacks", "env_set", "searchpath", "launcher-target", "job_logging-group", "moved"]
)
def test_a_sweep_refuses_it_before_hydra_builds_anything(name, canary, refused):
    assert "Hydra's own" in refused("-m", "optim.lr=1e-4,2e-4", TYPED[name])


def test_a_swept_option_cannot_bring_it_into_a_trial(canary, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("tuneforge.train.launch", lambda composed: pytest.fail("a trial ran"))
    (tmp_path / "dir" / "experiment").mkdir(parents=True)
    for name in "ab":
        text = f"# @package _global_\n{FILES['environment']}"
        (tmp_path / "dir" / "experiment" / f"{name}.yaml").write_text(text)
    directory = ("--config-dir", str(tmp_path / "dir"))
    for sweeper in ("optuna", "basic"):
        arguments = ("-m", *directory, "+experiment=a,b", f"hydra/sweeper={sweeper}", f"output_root={tmp_path / 'out'}")
        assert "Hydra's own" in refused(*arguments)


@pytest.mark.parametrize(
    "choice", [{"hydra/callbacks": "x"}, {"hydra/job_logging": "default"}, {"hydra.callbacks": "x"}]
)
def test_a_record_cannot_choose_it(choice, canary, refused, recorded):
    run = recorded(choices={**compose().choices, **choice})
    assert "Hydra's own" in refused("plan", str(run), "method.r=4")


@pytest.mark.parametrize("name", ["callbacks", "env_set", "searchpath", "whole", "moved"])
def test_a_record_that_says_it_was_typed_has_no_effect_or_is_refused(name, canary, recorded):
    """Where a run was written is no part of what it did, so `hydra.*` of a record is left out."""
    recorded = recorded(overrides=[TYPED[name]])
    assert run(["plan", str(recorded), "method.r=4"]) == (2 if name == "moved" else 0)


# Params are overrides of the trials: Hydra's own sweeper hands them to Hydra, which acts on them before we are asked.
PARAMS = {
    "environment": ("+hydra.job.env_set.CANARY", "x"),
    "directory": ("hydra.job.chdir", "true"),
    "logging": ("+hydra.job_logging", "{version: 1, handlers: {x: {class: logging.FileHandler, filename: MARK}}}"),
    "interpolated": ("+hydra.job.env_set.CANARY", "${seed}"),
    "moved": ("+optim@hydra.job.env_set", "adamw"),
    "swept": ("+hydra.job.env_set.CANARY", "x,y"),
    "deleted": ("~hydra.job", "x"),
}


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("chosen", ["typed", "in the file", "ours"])
def test_params_of_a_sweeper_cannot_set_it_in_the_trials(name, chosen, canary, refused, experiment):
    key, value = PARAMS[name]
    sweeper = {"defaults": [{"override /hydra/sweeper": "basic"}]} if chosen == "in the file" else {}
    params = {key: value.replace("MARK", str(canary.mark))}
    typed = ["hydra/sweeper=basic"] if chosen == "typed" else []
    picked = experiment({**sweeper, "hydra": {"sweeper": {"params": params}}})
    assert "Hydra's own" in refused("-m", *picked, "optim.lr=1e-4,2e-4", *typed)
    assert not list(canary.folder.parent.glob("out/**/run.json"))


def test_a_sweeper_that_is_neither_ours_nor_hydras_is_refused(canary):
    with front() as loader, pytest.raises(TuneforgeError, match="neither tuneforge's sweeper nor Hydra's own"):
        _check_params(loader, OmegaConf.create({"_target_": "canary_module.run", "params": {}}))


ALLOWED = ("hydra.run.dir=x", "hydra.sweep.dir=x", "hydra.sweep.subdir=x", "hydra.sweeper.n_trials=3")


@pytest.mark.parametrize("override", ALLOWED)
def test_the_documented_keys_stay(override):
    assert compose([override]).choices["method"] == "lora"
