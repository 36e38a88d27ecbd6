"""A config that is wrong anywhere is refused at once, with what was meant and where it was set."""

import subprocess
import sys

import pytest

from tuneforge.cli import VERBS, run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError

WRONG = [
    ("optm/x=3", "optm/x", ""),
    ("data=null", "data", ""),
    ("optim=[1]", "optim", ""),
    ("model=hf", "model.path", "is required"),
    ("optim._target_=tuneforge.optim.nothing", "optim._target_", "cannot be found"),
    ("optim.lr=${nowhere.at_all}", "optim.lr", "cannot be worked out"),
    ("optim.lr=1,2", "optim.lr", "need --multirun"),
    ("model.trust_remote_code=true", "model.revision", "needs a pinned"),
    ("model.init=scratch", "method", "frozen"),
    ("data.split.eval_fraction=0", "data.split.eval_fraction", "nothing would show overfitting"),
]
MEANT = [
    ("++callbacks.nan_gaurd.action=stop", "callbacks.nan_gaurd", "did you mean 'nan_guard'"),
    ("++callbacks.nan_gaurd=stop", "callbacks.nan_gaurd", "did you mean 'nan_guard'"),
    ("~callbacks.nan_gaurd", "callbacks.nan_gaurd", "did you mean 'nan_guard'"),
    ("~callbacks.nan_gaurd.action", "callbacks.nan_gaurd.action", "did you mean 'nan_guard'"),
    ("~optm.lr", "optm.lr", "did you mean 'optim'"),
    ("~optim", "optim", "choose an option: optim=NAME"),
    ("+experiment=mine", "experiment", "--config-dir DIR with experiment/mine.yaml"),
]


@pytest.mark.parametrize(("override", "path", "fix"), MEANT)
def test_what_was_meant_is_named(override, path, fix):
    with pytest.raises(TuneforgeError) as raised:
        compose([override])
    assert any(fix in p.fix for p in raised.value.problems if p.path == path)


@pytest.mark.parametrize(("override", "path", "says"), WRONG)
def test_a_wrong_value_names_its_path_and_what_is_allowed(override, path, says):
    with pytest.raises(TuneforgeError) as raised:
        compose([override])
    assert path in {p.path for p in raised.value.problems}
    assert any(says in p.message for p in raised.value.problems if p.path == path)


def test_all_problems_come_in_one_report():
    overrides = ["optim.lrr=1", "seed=x", "method=lorra", "data.packin=false"]
    with pytest.raises(TuneforgeError) as raised:
        compose(overrides)
    assert {p.path for p in raised.value.problems} == {"optim.lrr", "seed", "method", "data.packin"}


def test_a_config_dir_is_checked_as_strictly_and_named_as_origin(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [lora]\nname: mine\nrr: 3\nr: many\n")
    with pytest.raises(TuneforgeError) as raised:
        compose(["method=mine"], [tmp_path])
    origins = {p.path: p.origin for p in raised.value.problems}
    assert origins["method.rr"] == f"{tmp_path}/method/mine.yaml:3"
    assert origins["method.r"] == f"{tmp_path}/method/mine.yaml:4"


def test_a_good_config_dir_option_is_used(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [lora]\nname: mine\nr: 3\n")
    composed = compose(["method=mine"], [tmp_path])
    assert composed.tree["method"]["r"] == 3
    assert composed.origins["method.r"].where == f"{tmp_path}/method/mine.yaml:3"


def test_a_config_dir_cannot_shadow_ours(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "lora.yaml").write_text("name: lora\nr: 999\n")
    assert compose(["method=lora"], [tmp_path]).tree["method"]["r"] == 16


def test_a_broken_yaml_in_a_config_dir_is_told_with_its_place(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("name: [mine\n")
    with pytest.raises(TuneforgeError, match=r"mine\.yaml"):
        compose(["method=mine"], [tmp_path])


BAD_DEFAULTS = {
    "{a: {b: c}}": "has no name of an option",
    "{a: 3}": "has no name of an option",
    "{a: [{}]}": "has no name of an option",
    "{'': b}": "names no group",
    "{x a: b}": "names no group",
    "{a: b, c: d}": "neither one name nor one GROUP: OPTION",
    "{}": "neither one name nor one GROUP: OPTION",
    "3": "neither one name nor one GROUP: OPTION",
    "' '": "names no option",
    "lora.yaml": "without .yaml",
    "{/optim: adamw.yaml}": "without .yaml",
    "mine": "leads back to its own file",
    "{/method: mine}": "leads back to its own file",
}


@pytest.mark.parametrize("entry", BAD_DEFAULTS)
def test_an_entry_of_a_defaults_list_that_hydra_cannot_take_is_told(tmp_path, entry):
    """Hydra raises ValueError, AssertionError, FileNotFoundError or RecursionError for them."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(f"defaults: [{entry}, _self_]\nname: mine\n")
    with pytest.raises(TuneforgeError, match=BAD_DEFAULTS[entry]) as raised:
        compose(["method=mine"], [tmp_path])
    assert "mine" in str(raised.value)


def test_an_option_may_be_named_by_a_number(tmp_path):
    (tmp_path / "hardware").mkdir()
    (tmp_path / "hardware" / "3090.yaml").write_text("defaults: [rtx3090]\nname: '3090'\n")
    assert compose(["hardware=3090"], [tmp_path]).choices["hardware"] == "3090"


@pytest.mark.parametrize("override", ["~callbacks=1e400", "~callbacks=[a]", "~callbacks={a: b}", "~config=1"])
def test_what_cannot_be_deleted_is_told(refused, override):
    refused("--cfg", "job", override)


def test_hydras_notes_for_developers_are_not_shown():
    """The suite turns warnings into errors."""
    assert compose(["model.add_tokens=[a]", "model.add_tokens=extend_list(b)"]).config.model.add_tokens == ["a", "b"]


@pytest.mark.parametrize(
    "arguments",
    [["trian"], ["--mulitrun"], ["train", "oops"], ["seed=x"], ["--config-dir", "nowhere"], ["train", "--rules"]],
)
def test_the_command_line_answers_with_exit_2_and_no_traceback(refused, arguments):
    assert "error: " in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--package", "optim"], "add --cfg job"),
        (["-p=optim", "optim.lr=1"], "add --cfg job"),
        (["--resolve"], "add --cfg job"),
        (["--info", "--package", "optim"], "add --cfg job"),
        (["--info", "--cfg", "job"], "ask one after the other"),
        (["plan", "--why", "optim.lr", "--diff", "x"], "ask one after the other"),
        (["--info", "serchpath"], "'searchpath'"),
        (["plugins", "optim=lion"], "composes no config"),
        (["report", "x", "optim=lion"], "composes no config"),
        (["doctor", "--rules", "optim=lion"], "plan says"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused_and_nothing_is_trained(refused, monkeypatch, arguments, says):
    monkeypatch.setattr("tuneforge.train.launch", lambda composed: pytest.fail("trained"))
    assert says in refused(*arguments)


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_a_help_of_its_own_that_names_its_flags(capsys, verb):
    assert run([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{verb}: ")
    assert f"python -m tuneforge {verb} " in said
    flags = {flag for entry in VERBS.values() for flag in entry.flags}
    # `plan: ... --why KEY` names a flag in its first lines, too.
    listed = {line.split()[0].rstrip(",") for line in said.partition("flags:")[2].splitlines() if line.strip()}
    assert flags & listed == set(VERBS[verb].flags)


def test_a_config_error_writes_nothing_and_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\n"
        "from tuneforge.cli import run\n"
        "code = run(['optim.lrr=1', 'hydra.run.dir=out'])\n"
        "sys.exit(9 if 'torch' in sys.modules else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_provenance_says_file_line_and_override():
    composed = compose(["optim.weight_decay=0.05", "method=qlora"])
    assert composed.origins["optim.weight_decay"].where == "command line: optim.weight_decay=0.05"
    assert composed.origins["method.name"].where.startswith("conf/method/qlora.yaml:")
    assert composed.origins["method.clip"].where.startswith("conf/method/lora.yaml:")
    assert composed.origins["optim.lr"].expression.startswith("${times:${method.lr.${task_recipe.objective}},")
    assert composed.origins["data.packing"].where == "default of tuneforge.schema.data.Data"


def test_every_leaf_has_an_origin():
    composed = compose()

    def leaves(tree, path=""):
        for key, value in tree.items():
            where = f"{path}.{key}" if path else key
            yield from leaves(value, where) if isinstance(value, dict) and value else [where]

    paths = list(leaves(composed.tree))
    missing = [p for p in paths if not any(p == o or p.startswith(f"{o}.") for o in composed.origins)]
    assert len(paths) > 80
    assert missing == []
