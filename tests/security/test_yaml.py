"""YAML is data within bounds, through every door; interpolations and overrides cannot grow without end either."""

import json
import time

import pytest
import yaml

from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.yaml_files import read_yaml

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(9)
)
HOSTILE = {
    "path": ("k: !!python/object/apply:pathlib.PosixPath [/tmp]", "yaml-tag"),
    "path-3.13": ("k: !!python/object/apply:pathlib._local.PosixPath [/tmp]", "yaml-tag"),
    "system": ("k: !!python/object/apply:os.system ['touch mark']", "yaml-tag"),
    "name": ("k: !!python/name:canary_module.run ''", "yaml-tag"),
    "module": ("k: !!python/module:canary_module ''", "yaml-tag"),
    "new": ("k: !!python/object/new:canary_module.run {}", "yaml-tag"),
    "tuple": ("k: !!python/tuple [1, 2]", "yaml-tag"),
    "own-tag": ("k: !attack x", "yaml-tag"),
    "set": ("k: !!set {x}", "yaml-tag"),
    "binary": ("k: !!binary aGk=", "yaml-tag"),
    "timestamp": ("k: !!timestamp x", "yaml-tag"),
    "laughs": (LAUGHS, "yaml-too-large"),
    "recursive": ("k: &a [*a]", "bad-yaml"),
    "deep-flow": ("k: " + "[" * 100_000, "yaml-too-large"),
    "deep-flow-closed": ("k: " + "[" * 200 + "]" * 200, "yaml-too-large"),
    "deep-block": ("- " * 100_000, "yaml-too-large"),
    "wide": ("k: [" + "1," * 30_000 + "]", "yaml-too-large"),
    "digits": ("k: " + "9" * 10_000, "bad-yaml"),
    "binary-digits": ("k: 0b" + "1" * 30_000, "bad-yaml"),
    "tagged": ("k: !!int x", "bad-yaml"),
    "nul": ("k: a\x00b", "bad-yaml"),
    "twice": ("k: 1\nk: 2", "bad-yaml"),
    "documents": ("k: 1\n--- \nk: 2", "bad-yaml"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_yaml_builds_an_object_or_grows(name, canary):
    text, code = HOSTILE[name]
    start = time.process_time()
    with pytest.raises(TuneforgeError) as raised:
        read_yaml(text, "file.yaml")
    assert raised.value.problems[0].code == code
    assert raised.value.problems[0].message.startswith("file.yaml")
    assert len(str(raised.value)) < 500
    assert time.process_time() - start < 2


def test_the_variable_that_lifts_omegaconfs_bound_does_not_lift_ours(canary, monkeypatch):
    monkeypatch.setenv("OMEGACONF_MAX_YAML_EXPANDED_NODES", "none")
    with pytest.raises(TuneforgeError):
        read_yaml(LAUGHS, "file.yaml")


def test_values_are_read_as_omegaconf_reads_them():
    text = "a: 1e-4\nb: 2026-11-28\nc: yes\nd: 0x1F\ne: .inf\nf: ~\ng: =\nh: '1'\n"
    wanted = {"a": 1e-4, "b": "2026-11-28", "c": True, "d": 31, "e": float("inf"), "f": None, "g": "=", "h": "1"}
    assert read_yaml(text, "") == wanted
    assert read_yaml("", "") is None


DOORS = ("path", "system", "laughs", "deep-flow", "recursive", "set")


@pytest.mark.parametrize("name", DOORS)
def test_an_option_file_is_read_so(name, canary, refused, tmp_path):
    for group in ("experiment", "optim"):
        (tmp_path / "dir" / group).mkdir(parents=True)
        (tmp_path / "dir" / group / "mine.yaml").write_text(HOSTILE[name][0])
    for choice in ("+experiment=mine", "optim=mine"):
        said = refused("--config-dir", str(tmp_path / "dir"), choice)
        assert "mine.yaml" in said
        assert len(said) < 1000


@pytest.mark.parametrize("name", DOORS)
def test_a_plugins_option_file_is_read_so_and_breaks_only_who_chooses_it(name, canary, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "")
    canary.before = canary.state()
    root = tmp_path / "here" / "plugins" / "nest"
    (root / "plug_nest" / "conf" / "optim").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project.entry-points."tuneforge.plugins"]\nnest = "plug_nest"\n')
    (root / "plug_nest" / "__init__.py").touch()
    (root / "plug_nest" / "conf" / "optim" / "mine.yaml").write_text(HOSTILE[name][0] + "\n# _target_\n")
    assert compose().choices["optim"] == "adamw"
    assert "mine.yaml" in refused("optim=mine")


@pytest.mark.parametrize("name", DOORS)
def test_a_recorded_run_is_read_so(name, canary, refused, recorded):
    run = recorded()
    (run / "config.yaml").write_text(HOSTILE[name][0])
    assert "config.yaml" in refused("plan", str(run))


@pytest.mark.parametrize("name", DOORS)
def test_an_imported_config_is_read_so(name, canary, refused, tmp_path):
    (tmp_path / "theirs.yaml").write_text(HOSTILE[name][0])
    assert "theirs.yaml" in refused("import", str(tmp_path / "theirs.yaml"))


def test_an_import_carries_no_interpolation(canary, tmp_path, capfd):
    theirs = {
        "base_model": "x/y", "adapter": "lora", "lora_r": 8, "learning_rate": 1e-4,
        "lora_target_modules": ["q_proj", "${oc.env:CANARY}"], "datasets": [{"path": "x.jsonl", "type": "alpaca"}],
    }  # fmt: skip
    (tmp_path / "theirs.yaml").write_text(yaml.safe_dump(theirs))
    run(["import", str(tmp_path / "theirs.yaml")])
    command = capfd.readouterr().out.partition("carried")[0]
    assert "${" not in command
    assert "sings" not in command


def chain(body, count):
    """Keys `a0` to `aN`, each of which reads the next."""
    lines = {f"a{i}": body.replace("NEXT", f"${{trainer.a{i + 1}}}") for i in range(count)}
    return {"trainer": {**lines, f"a{count}": "1" * 16}, "output_root": "${trainer.a0}"}


BOMBS = {
    "doubling-text": chain("NEXTNEXT", 18),
    "doubling-text-long": chain("NEXTNEXT", 60),
    "times": chain("${times:NEXT,NEXT}", 18),
    "times-chain": chain("${times:NEXT,2}", 60),
    "text-times-number": {"output_root": "${times:abc,1000000000}"},
    "cycle": {"output_root": "${output_root}"},
    "nodes": {"trainer": {f"a{i}": dict.fromkeys("xy", f"${{trainer.a{i + 1}}}") for i in range(30)}},
    "lists": {"trainer": {f"a{i}": [f"${{trainer.a{i + 1}}}"] * 2 for i in range(30)} | {"a30": [1]}},
    "create": {"output_root": "${oc.create:${trainer}}"},
    "select": {"output_root": "${oc.select:seed}"},
    "decode": {"output_root": "${oc.decode:'" + "[" * 60 + "'}"},
    "long": {"output_root": "${seed}" * 500},
    "many": {"trainer": {f"a{i}": "${seed}" for i in range(6000)}},
}


@pytest.mark.parametrize("name", BOMBS)
def test_interpolations_are_bounded(name, canary, refused, tmp_path):
    (tmp_path / "dir" / "experiment").mkdir(parents=True)
    (tmp_path / "dir" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n" + yaml.safe_dump(BOMBS[name], width=10**6)
    )
    start = time.process_time()
    refused("--config-dir", str(tmp_path / "dir"), "+experiment=mine", "--cfg", "job")
    assert time.process_time() - start < 5


SWEEPS = {
    "study_name": {**chain("NEXTNEXT", 18), "hydra": {"sweeper": {"study_name": "${trainer.a0}"}}},
    "trial": {**BOMBS["nodes"], "hydra": {"sweeper": {"trial": "${trainer.a0}"}}},
    "params": {"hydra": {"sweeper": {"params": {f"a{i}": f"${{params.a{i + 1}}}" * 2 for i in range(30)}}}},
    "directory": {**chain("NEXTNEXT", 18), "hydra": {"sweep": {"dir": "${trainer.a0}"}}},
}


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("sweeper", ["optuna", "basic"])
def test_interpolations_of_a_sweep_are_bounded(name, sweeper, canary, refused, experiment):
    """What a sweep reads of Hydra's node is worked out before, and beside, the configs of its trials."""
    import tuneforge.study.command  # noqa: F401  whose import is not what is measured

    start = time.process_time()
    refused("-m", *experiment(SWEEPS[name]), "optim.lr=1e-4,2e-4", f"hydra/sweeper={sweeper}")
    assert time.process_time() - start < 5


RECORDED = {
    "doubling-text": {f"trainer.a{i}": f"${{trainer.a{i + 1}}}" * 2 for i in range(40)},
    "lists": {f"trainer.a{i}": [f"${{trainer.a{i + 1}}}"] * 2 for i in range(30)} | {"trainer.a30": 1},
    "create": {"seed": "${oc.create:'[1, 2]'}"},
    "self": {"seed": "${seed}"},
}


@pytest.mark.parametrize("name", RECORDED)
def test_interpolations_of_a_record_are_bounded(name, canary, refused, recorded, processor_seconds):
    """A record may say of any text that it was read from the environment, so that it is worked out again."""
    run = recorded(tree=RECORDED[name], from_environment=RECORDED[name])
    with processor_seconds(5):
        assert len(refused("plan", str(run))) < 20_000


ORIGINS = {
    "open": {"where": "x", "expression": "${" * 50_000},
    "nested": {"where": "x", "expression": "${a" * 3000 + "}" * 3000},
    "circle": {"where": "x", "expression": "${optim.weight_decay}"},
    "self": {"where": "x", "expression": "${optim.lr}"},
}


@pytest.mark.parametrize("name", ORIGINS)
def test_expressions_of_a_record_are_bounded(name, canary, recorded, capfd, processor_seconds):
    back = {"where": "x", "expression": "${optim.lr}"}
    root = recorded(provenance={"optim.lr": ORIGINS[name], "optim.weight_decay": back})
    with processor_seconds(5):
        assert run(["plan", str(root), "--why", "optim.lr"]) == 0
    assert "optim.lr = " in capfd.readouterr().out


ODD = {
    "number": {"from_environment": 5},
    "list": {"from_environment": ["seed"]},
    "pickers": {"pickers": 5},
    "choices": {"choices": {"method": {"a": 1}}},
    "origin": {"provenance": {"seed": {"where": "x", "expression": "", "replaced": 5}}},
    "origin's text": {"provenance": {"seed": {"where": "x", "expression": "", "written": 5}}},
    "key": {"tree": {"trainer": {1: 2}}},
    "no key": {"tree": {"trainer": {None: 1}}},
    "folder": {"config_dirs": ["a\0b"]},
    "path": {"tree": {"model.path": "a\0b", "model.name": "hf"}},
}


@pytest.mark.parametrize("name", ODD)
def test_a_record_of_any_shape_is_told(name, canary, recorded, capfd):
    root = recorded(**ODD[name])
    code = run(["plan", str(root), "method.r=4"])
    assert code == (0 if name == "path" else 2)
    assert "Traceback" not in capfd.readouterr().err


OVERRIDES = {
    "brackets": "seed=" + "[" * 3000,
    "brackets-closed": "seed=" + "[" * 3000 + "]" * 3000,
    "braces": "seed=" + "{a:" * 500 + "1" + "}" * 500,
    "calls": "seed=" + "tag(" * 300 + "1" + ")" * 300,
    "interpolations": "seed=" + "${a." * 300 + "x" + "}" * 300,
    "key": ".".join("a" * 2000) + "=1",
    "huge": "output_root=" + "x" * 3_000_000,
    "digits": "seed=" + "9" * 9000,
    "nul": "output_root=a\0b",
    "delete": "~" + ".".join("a" * 500),
}


@pytest.mark.parametrize("name", OVERRIDES)
@pytest.mark.parametrize("sweeps", [False, True], ids=["run", "sweep"])
def test_an_override_is_bounded(name, sweeps, canary, refused):
    start = time.process_time()
    said = refused(*(["-m", "optim.lr=1e-4,2e-4"] if sweeps else []), OVERRIDES[name])
    assert len(said) < 2000
    assert time.process_time() - start < 5


def test_a_grid_of_a_huge_range_is_refused_at_once(canary, refused):
    start = time.process_time()
    arguments = ("-m", "seed=range(1,1000000000000)", "hydra/sweeper/sampler=grid")
    assert "combinations" in refused(*arguments)
    assert time.process_time() - start < 5


def test_what_a_user_writes_stays_within_the_bounds():
    labels = json.dumps([f"label {i}" for i in range(300)])
    found = compose([f"data.labels={labels}", "task_recipe=classification", "optim.lr=${times:2,1e-4}"])
    assert len(found.config.data.labels) == 300
    assert found.config.optim.lr == 2e-4
