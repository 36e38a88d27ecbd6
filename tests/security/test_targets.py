"""A `_target_` is an option, not a function: whatever else a config names is refused before anything is imported."""

import json

import pytest

from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.targets import LIBRARIES, load, make, trusted

# Functions of the package that write, delete, import or end things: each was callable from YAML.
OURS = (
    "tuneforge.artifacts.folder.write_text",
    "tuneforge.artifacts.folder.write_json",
    "tuneforge.artifacts.whole._clear",
    "tuneforge.cli.run",
    "tuneforge.doctor.probe._import",
    "tuneforge.plugins.scaffold.write_plugin",
    "tuneforge.targets.load",
    "tuneforge.console.say",
)
FOREIGN = (
    "os.system",
    "os.remove",
    "shutil.rmtree",
    "subprocess.run",
    "builtins.eval",
    "torch.load",
    "canary_module.run",
)
NODES = {
    "model": None,
    "data": "data._target_",
    "method": "method._target_",
    "strategy": "strategy._target_",
    "optim": "optim._target_",
    "scheduler": "scheduler._target_",
    "task_recipe": "task_recipe._target_",
    "callbacks": "+callbacks.attack._target_",
    "logger": "+logger.attack._target_",
    "tasks": "callbacks.forgetting_check.tasks.attack._target_",
}


def refusal(*overrides, dirs=()):
    with pytest.raises(TuneforgeError) as raised:
        compose(overrides, dirs)
    return {(p.code, p.path) for p in raised.value.problems}


@pytest.mark.parametrize("target", [*OURS, *FOREIGN])
def test_no_function_is_called_by_any_group(target, canary):
    """The attack's arguments are those with which the function would do harm."""
    harm = {"path": str(canary.mark), "text": "x", "folder": str(canary.folder), "argv": [], "name": canary.module}
    for group, key in NODES.items():
        if key is None:
            continue
        path = key.lstrip("+")
        node = path.rpartition(".")[0]
        found = refusal(f"{key}={target}", *(f"++{node}.{k}={json.dumps(v)}" for k, v in harm.items()))
        assert ("untrusted-target", path) in found, group
    canary.check()


SWAPPED = [
    ("callbacks", "tuneforge.methods.lora.Lora"),
    ("method", "tuneforge.callbacks.checkpoints.Checkpoints"),
    ("optim", "tuneforge.schedulers.cosine"),
    ("logger", "tuneforge.callbacks.progress.Progress"),
    ("optim", "lightning.pytorch.loggers.CSVLogger"),
    ("callbacks", "optuna.pruners.NopPruner"),
    ("data", "tuneforge.study.spaces.methods"),
    ("task_recipe", "tuneforge.study.sweeper.StudySweeper"),
]


@pytest.mark.parametrize(("group", "target"), SWAPPED)
def test_a_target_is_trusted_in_its_own_group_alone(group, target, canary):
    key = f"+{group}.attack._target_" if group in ("callbacks", "logger") else f"{group}._target_"
    assert ("untrusted-target", key.lstrip("+")) in refusal(f"{key}={target}")


def test_the_trusted_names_are_the_options_and_the_exact_lists():
    groups = ("data", "method", "strategy", "optim", "scheduler", "task_recipe", "callbacks", "logger")
    assert {g: len(trusted(g)) > 1 for g in groups} == dict.fromkeys(groups, True)
    assert trusted("model") == frozenset()
    for group, names in LIBRARIES.items():
        assert names <= trusted(group)
    everything = {name for group in groups for name in trusted(group)}
    assert not everything & {*OURS, *FOREIGN}


def test_what_an_option_names_stays_usable_elsewhere_in_its_group():
    found = compose(["callbacks=none", "+callbacks.mine._target_=tuneforge.callbacks.progress.Progress"])
    assert found.tree["callbacks"]["mine"]["_target_"] == "tuneforge.callbacks.progress.Progress"


FORMATS = ("os.system", "tuneforge.cli.run", "tuneforge.data.formats._alpaca", "canary_module.run", "json.loads")


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_what_an_option_names(name, canary):
    assert refusal(f"data.format={name}") == {("unknown-format", "data.format")}


@pytest.mark.parametrize("target", ["tuneforge.cli.run", "canary_module.run", "tuneforge.artifacts.folder.write_text"])
def test_an_option_file_of_a_config_dir_trusts_nothing_by_itself(target, canary, tmp_path):
    files = {
        "optim/mine.yaml": f"defaults: [adamw]\n_target_: {target}\n",
        "callbacks/mine.yaml": f"attack:\n  _target_: {target}\n  path: {canary.mark}\n",
        "data/mine.yaml": f"defaults: [pydoc]\nformat: {target}\n",
        "experiment/mine.yaml": f"# @package _global_\nscheduler:\n  _target_: {target}\n",
    }
    for name, text in files.items():
        (tmp_path / "dir" / name).parent.mkdir(parents=True)
        (tmp_path / "dir" / name).write_text(text)
    for choice in ("optim=mine", "callbacks=mine", "data=mine", "+experiment=mine"):
        codes = {code for code, _ in refusal(choice, dirs=[tmp_path / "dir"])}
        assert codes & {"untrusted-target", "unknown-format"}, choice


@pytest.mark.parametrize("where", ["optim._target_", "callbacks.progress._target_", "data.format"])
def test_a_recorded_run_passes_the_same_gate(where, canary, refused, recorded):
    run = recorded(tree={where: "canary_module.run"})
    for arguments in (["plan", str(run)], ["--from", str(run), "--cfg", "job"]):
        assert where in refused(*arguments)


@pytest.mark.parametrize("group", ["optim", "callbacks", "hydra/sweeper/sampler", "data.format"])
@pytest.mark.parametrize("name", ["canary_module.run", "tuneforge.cli.run"])
def test_the_place_that_calls_asks_again(group, name, canary):
    """A tree that reaches a process without being checked (a handover, an environment variable) passes the gate too."""
    with pytest.raises(TuneforgeError) as raised:
        load(group, name)
    assert raised.value.problems[0].code == "untrusted-target"
    with pytest.raises(TuneforgeError):
        make(group, {"_target_": name}, object)


def test_what_is_built_is_of_its_groups_type():
    with pytest.raises(TuneforgeError) as raised:
        make("data", {"_target_": "tuneforge.data.pydoc.pydoc"}, dict)
    (problem,) = raised.value.problems
    assert problem.code == "wrong-kind"
    assert "makes a list, and data is a dict" in problem.message


PLUGIN = """\
def source(*, path: str | None = None):
    return "no list"


def helper(*, path: str = ""):
    open({mark!r}, "w").close()
"""


@pytest.fixture
def plugin(canary, tmp_path, monkeypatch):
    """A plugin whose data option makes no rows, and whose other function is nobody's option."""
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "")
    canary.before = canary.state()
    root = tmp_path / "here" / "plugins" / "nest"
    (root / "plug_nest" / "conf" / "data").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project.entry-points."tuneforge.plugins"]\nnest = "plug_nest"\n')
    (root / "plug_nest" / "__init__.py").touch()
    (root / "plug_nest" / "code.py").write_text(PLUGIN.format(mark=str(canary.mark)))
    (root / "plug_nest" / "conf" / "data" / "nest.yaml").write_text("_target_: plug_nest.code.source\n")
    (root / "plug_nest" / "t.jinja").write_text("x")
    return root


def test_a_plugins_other_functions_are_not_called(plugin, canary):
    found = refusal("data._target_=plug_nest.code.helper")
    assert ("untrusted-target", "data._target_") in found
    assert ("untrusted-target", "optim._target_") in refusal("optim._target_=plug_nest.code.source")
    assert refusal("data.format=plug_nest.code.helper") == {("unknown-format", "data.format")}


def test_an_option_file_of_a_plugin_trusts_its_own_package_alone(plugin, canary):
    (plugin / "plug_nest" / "conf" / "data" / "other.yaml").write_text("_target_: canary_module.run\n")
    assert ("untrusted-target", "data._target_") in refusal("data=other")


def test_a_plugin_that_makes_another_thing_is_told(plugin, canary, monkeypatch):
    from tuneforge.data import source

    monkeypatch.setattr("sys.path", __import__("sys").path[:])
    composed = compose(["data=nest"])
    with pytest.raises(TuneforgeError, match="makes a str, and data is a list"):
        source.read(composed.config.data, composed.tree["data"], 0)
