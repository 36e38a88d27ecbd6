"""Plugins appear, are checked as strictly as the core, and break only the runs that name them."""

import json
import os
import subprocess
import sys

import pytest

from misspellings import NAMES, VALUES
from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.plugins.discovery import discover


def refusal(*overrides: str) -> str:
    with pytest.raises(TuneforgeError) as raised:
        compose(overrides)
    return "\n".join(map(str, raised.value.problems))


def test_a_dropped_folder_adds_its_options_everywhere_without_being_imported(write, capsys):
    root = write("alpha")
    composed = compose(["hardware=alpha_box"])
    assert composed.tree["hardware"]["vram_gb"] == 12
    assert composed.origins["hardware.vram_gb"].where == (
        f"plugin alpha: {root}/plug_alpha/conf/hardware/alpha_box.yaml:4"
    )
    assert [p.name for p in composed.plugins] == ["alpha"]
    assert compose().plugins == ()
    assert "plug_alpha" not in sys.modules
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "alpha_box" in shown
    assert "alpha 1.2" in shown
    assert "did you mean 'alpha_box'?" in refusal("hardware=alpha_bx")


def test_a_folder_on_the_plugin_path_counts_too(write, here, monkeypatch):
    write("alpha", folder="elsewhere")
    assert "there is no option 'alpha_box'" in refusal("hardware=alpha_box")
    monkeypatch.setenv("TUNEFORGE_PLUGIN_PATH", str(here / "elsewhere"))
    assert compose(["hardware=alpha_box"]).choices["hardware"] == "alpha_box"


def test_plugins_are_switched_off_or_picked_by_name(write, monkeypatch):
    write("alpha")
    write("beta")
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "off")
    assert discover() == ()
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "beta")
    assert [p.name for p in discover()] == ["beta"]
    assert "no option 'alpha_box'" in refusal("hardware=alpha_box")
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "alpah")
    assert "TUNEFORGE_PLUGINS: no plugin 'alpah'\n  did you mean 'alpha'?" in refusal()


METHOD = """\
name: mine
_target_: {target}
r: 4
lr: {{sft: 1e-4}}
"""
CODE = """\
from os import system
from torch import load
from tuneforge.methods.lora import Lora
from tuneforge.schema.types import PositiveInt
from dataclasses import dataclass

@dataclass(frozen=True, kw_only=True)
class Mine(Lora):
    extra: PositiveInt = 3
"""


def with_method(write, target: str = "plug_alpha.code.Mine", code: str = CODE, more: str = "", **toml: object):
    files = {
        "plug_alpha/__init__.py": "",
        "plug_alpha/code.py": code,
        "plug_alpha/conf/method/mine.yaml": METHOD.format(target=target) + more,
    }
    return write("alpha", files, **toml)


def test_a_plugins_options_are_checked_against_the_signature_of_its_code(write):
    with_method(write)
    assert compose(["method=mine"]).tree["method"]["extra"] == 3
    assert "method.extra (command line: method.extra=0): must be an integer >= 1" in refusal(
        "method=mine", "method.extra=0"
    )
    assert "did you mean 'extra'?" in refusal("method=mine", "method.extr=1")
    assert "plug_alpha" not in sys.modules


def test_a_format_or_a_template_alone_makes_a_plugin_used(write):
    code = "def fmt(fields):\n    return fields\n"
    option = {"plug_alpha/conf/data/cards.yaml": "defaults: [file]\nformat: plug_alpha.code.fmt\n"}
    write("alpha", {"plug_alpha/__init__.py": "", "plug_alpha/code.py": code, "plug_alpha/t.jinja": "x", **option})
    for override in ("data.format=plug_alpha.code.fmt", "model.chat_template='plug_alpha:t.jinja'"):
        assert [p.name for p in compose([override]).plugins] == ["alpha"]


def test_a_plugins_own_option_file_is_checked_too(write):
    root = with_method(write, more="extar: 4\n")
    said = refusal("method=mine")
    assert f"method.extar (plugin alpha: {root}/plug_alpha/conf/method/mine.yaml:5): there is no such key" in said
    assert "did you mean 'extra'?" in said


def test_every_misspelling_of_the_table_is_refused_in_a_plugins_option_file(write):
    import yaml

    groups = {"model", "data", "method", "hardware", "strategy", "optim", "scheduler", "callbacks", "logger"}
    cases, files = [], {}
    for number, (override, path, says) in enumerate(NAMES + VALUES):
        key, _, value = override.partition("=")
        if key in groups or path in ("taskrecipe", "task_recipe") or "." not in key:
            continue
        node = yaml.safe_load(value)
        for part in reversed(key.split(".")):
            node = {part: node}
        files[f"plug_alpha/conf/experiment/case{number}.yaml"] = "# @package _global_\n" + yaml.safe_dump(node)
        cases.append((f"+experiment=case{number}", path, says))
    write("alpha", files)
    assert len(cases) > 70
    for choice, path, says in cases:
        said = refusal(choice)
        assert f"{path} (plugin alpha: " in said, (choice, said)
        assert says in said


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("os.system", "os.system is not trusted"),
        ("torch.load", "torch.load is not trusted"),
        ("plug_beta.code.Mine", "plug_beta.code.Mine is not trusted"),
        ("plug_alpha.code.system", "plug_alpha.code.system cannot be found"),
        ("plug_alpha.code.load", "plug_alpha.code.load is really of torch.serialization, which is not trusted"),
        ("plug_alpha.code.nothing", "module plug_alpha.code has no 'nothing'"),
        ("plug_alpha.missing.Mine", "there is no module 'plug_alpha.missing'"),
    ],
)
def test_a_config_cannot_reach_code_outside_of_trusted_packages(write, target, says):
    with_method(write, target)
    assert says in refusal("method=mine")


def test_a_syntax_error_breaks_only_the_run_that_names_the_plugin(write, capsys):
    root = with_method(write, code="class Mine(:\n")
    assert compose().choices["method"] == "lora"
    assert f"{root}/plug_alpha/code.py:1 cannot be read" in refusal("method=mine")
    assert run(["plugins"]) == 0
    assert f"broken: {root}/plug_alpha/code.py:1 is no Python" in capsys.readouterr().out


def test_a_missing_requirement_is_named_with_the_command_that_mends_it(write):
    root = with_method(write, dependencies='["nowhere-to-be-found>=3", "torch>=2"]')
    assert compose().plugins == ()
    assert f"plugin alpha ({root}) needs nowhere-to-be-found>=3\n  pip install 'nowhere-to-be-found>=3'" in refusal(
        "method=mine"
    )


def test_a_requirement_of_another_version_is_named(write):
    with_method(write, dependencies='["torch<1"]')
    assert "needs torch<1 (there is " in refusal("method=mine")


def test_code_that_does_not_import_ends_the_run_with_the_reason(write, here, capfd):
    root = with_method(write, code="import nowhere_to_be_found\n" + CODE)
    assert run(["method=mine", "trainer.max_steps=1", "data.max_rows=16", "hydra.run.dir=run"]) == 2
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert f"plug_alpha.code.Mine of plugin alpha ({root}) cannot be imported" in said
    assert "No module named 'nowhere_to_be_found'" in said
    assert f"tuneforge plugins check {root}" in said
    assert not (here / "run").exists()


def broken():
    """Refusal of the one option of a broken plugin; the core must go on."""
    said = refusal("hardware=alpha_box")
    assert compose().choices["hardware"] == "auto"
    return said


def test_a_name_that_tuneforge_has_is_refused_naming_both_owners(write):
    root = write("alpha", {"plug_alpha/conf/method/lora.yaml": "name: lora\n"})
    said = broken()
    assert f"'alpha_box' comes from plugin alpha ({root}), which is broken: method=lora belongs to tuneforge" in said
    assert "rename conf/method/lora.yaml in the plugin" in said
    assert compose(["method=lora"]).tree["method"]["r"] == 16


def test_a_name_that_two_plugins_have_is_refused_naming_both_owners(write, monkeypatch):
    one, two = (
        write(n, {f"plug_{n}/conf/hardware/shared.yaml": "name: shared\nkind: cpu\n"}) for n in ("alpha", "beta")
    )
    said = refusal("hardware=shared")
    assert f"'shared' is an option of plugin alpha ({one}) and of plugin beta ({two})" in said
    assert "TUNEFORGE_PLUGINS=alpha" in said
    assert compose(["hardware=alpha_box"]).choices["hardware"] == "alpha_box"
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "beta")
    assert compose(["hardware=shared"]).plugins[0].name == "beta"


def test_two_plugins_of_one_name_are_both_refused(write):
    write("alpha")
    other = write("gamma", entry="alpha", package="plug_gamma")
    assert f"another plugin has its name: plugin alpha ({other})" in refusal("hardware=alpha_box")
    assert "another plugin has its name" in refusal("hardware=gamma_box")


def test_a_package_that_python_has_already_is_refused(write):
    root = write("alpha", package="json")
    assert "Python has another package 'json'" in refusal("hardware=alpha_box")
    assert str(root) in refusal("hardware=alpha_box")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ("nothing_named", "must name one package in [project.entry-points.'tuneforge.plugins'], and names nothing"),
        ("two_named", "must name one package"),
        ("no_identifier", "must name one package"),
        ("no_toml", "is no TOML"),
        ("no_package", "names the package 'plug_other', and neither plug_other/ nor src/plug_other/ is there"),
        ("no_conf", "has no conf/"),
        ("no_pyproject", "there is no pyproject.toml"),
    ],
)
def test_a_folder_that_is_no_whole_plugin_is_listed_with_its_trouble(write, here, capsys, spoil, says):
    import shutil

    points = {"nothing_named": "", "two_named": 'a = "x"\nb = "y"', "no_identifier": 'a = "x.y:z"'}
    root = write("alpha", point=points[spoil]) if spoil in points else write("alpha")
    if spoil == "no_toml":
        (root / "pyproject.toml").write_text("[project\n")
    if spoil == "no_package":
        (root / "pyproject.toml").write_text('[project.entry-points."tuneforge.plugins"]\nalpha = "plug_other"\n')
    if spoil == "no_conf":
        shutil.rmtree(root / "plug_alpha" / "conf")
    if spoil == "no_pyproject":
        (root / "pyproject.toml").unlink()
        (root / "conf").mkdir()
    assert compose().choices["method"] == "lora"
    assert run(["plugins"]) == 0
    shown = capsys.readouterr().out
    assert says in shown
    assert str(root) in shown


def test_a_link_out_of_the_folder_is_refused(write, here):
    root = write("alpha")
    (here / "secret.yaml").write_text("name: secret\nkind: cpu\n")
    (root / "plug_alpha" / "conf" / "hardware" / "secret.yaml").symlink_to(here / "secret.yaml")
    said = refusal("hardware=alpha_box")
    assert "is a link out of the plugin's folder" in said
    assert "copy the file there" in said


def test_a_folder_that_everyone_may_write_into_is_refused(write):
    root = write("alpha")
    (root / "plug_alpha").chmod(0o777)
    said = refusal("hardware=alpha_box")
    assert f"everyone on this machine may write into {root / 'plug_alpha'}" in said
    assert f"chmod o-w {root / 'plug_alpha'}" in said


def test_a_broken_plugin_named_by_an_experiment_is_told(write, here):
    write("alpha", {"plug_alpha/conf/method/lora.yaml": "name: lora\n"})
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "e.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hardware: alpha_box\n"
    )
    with pytest.raises(TuneforgeError, match="which is broken"):
        compose(["+experiment=e"], [here / "mine"])


def test_the_list_as_json(write, capsys):
    root = write("alpha")
    assert run(["plugins", "--json"]) == 0
    (shown,) = json.loads(capsys.readouterr().out)
    assert shown["adds"] == {"hardware": ["alpha_box"]}
    assert (shown["name"], shown["version"], shown["origin"]) == ("alpha", "1.2", str(root))
    assert shown["troubles"] == []


def test_the_digest_changes_with_any_file_of_the_package(write):
    root = write("alpha")
    before = discover()[0].digest
    (root / "plug_alpha" / "__init__.py").write_text("# changed\n")
    (after,) = discover()
    assert before != after.digest
    (root / "plug_alpha" / "__pycache__").mkdir()
    (root / "plug_alpha" / "__pycache__" / "x.pyc").write_text("x")
    (cached,) = discover()
    assert cached.digest == after.digest


def test_fifty_plugins_are_not_imported_and_a_wrong_one_costs_nothing(write, here):
    for i in range(50):
        write(f"p{i}")
    code = (
        "import sys\nfrom tuneforge.cli import run\n"
        "code = run(['--cfg', 'job'])\n"
        "print(sorted(m for m in sys.modules if m.startswith('plug_')), file=sys.stderr); sys.exit(code)\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("TUNEFORGE_")}
    done = subprocess.run([sys.executable, "-c", code], cwd=here, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert len(discover()) == 50
