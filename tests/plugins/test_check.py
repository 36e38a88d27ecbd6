"""`plugins new` writes plugins that `plugins check` passes; what breaks the contract does not pass."""

import subprocess
import sys

import pytest

from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import EXIT_REFUSED, RefusedError
from tuneforge.plugins.scaffold import GROUPS, KINDS
from tuneforge.testing import check_plugin


@pytest.mark.parametrize("kind", KINDS)
def test_what_new_writes_is_a_plugin_that_conforms(here, capsys, kind):
    assert len(KINDS) == 7
    assert run(["plugins", "new", f"my-{kind}", "--kind", kind]) == 0
    choice = f"{GROUPS[kind]}=my_{kind}"
    assert choice in capsys.readouterr().out
    assert compose([choice]).choices[GROUPS[kind]] == f"my_{kind}"
    passed = check_plugin(here / "plugins" / f"my-{kind}", train=kind == "method")
    assert f"{choice}: its targets take their options" in passed
    assert (f"{choice} trains two steps, saves and reloads" in passed) == (kind == "method")


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_new_writes_trains(here, kind):
    assert run(["plugins", "new", f"my-{kind}", "--kind", kind]) == 0
    trained = [line for line in check_plugin(here / "plugins" / f"my-{kind}") if "trains two steps" in line]
    assert len(trained) == (kind != "hardware")


def test_what_new_writes_has_a_test_of_its_own_and_passes_lint(here):
    assert run(["plugins", "new", "my-method"]) == 0
    folder = here / "plugins" / "my-method"
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", "--select=E,F,W,B"]
    done = subprocess.run([*ruff, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "check_plugin" in (folder / "tests" / "test_plugin.py").read_text()


def test_new_overwrites_nothing(here, refused):
    assert run(["plugins", "new", "mine"]) == 0
    before = (here / "plugins" / "mine" / "pyproject.toml").read_bytes()
    assert "is there already, and nothing is overwritten" in refused("plugins", "new", "mine")
    assert (here / "plugins" / "mine" / "pyproject.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["new", "My Plugin"], "is no name for a plugin"),
        (["new", "../evil"], "is no name for a plugin"),
        (["new", "mine", "--kind", "metod"], "did you mean 'method'"),
        (["new"], "plugins new takes a name"),
        (["nwe", "mine"], "did you mean 'new'"),
        (["check"], "plugins check takes a folder"),
    ],
)
def test_a_wrong_command_says_how_it_goes(here, refused, arguments, says):
    assert says in refused("plugins", *arguments)
    assert list(here.iterdir()) == []


def failures(folder) -> str:
    with pytest.raises(RefusedError) as raised:
        check_plugin(folder, train=False)
    return "\n".join(map(str, raised.value.problems))


def test_check_names_what_is_wrong(write, capfd):
    root = write("alpha", {"plug_alpha/conf/method/lora.yaml": "name: lora\n"})
    assert "method=lora ship with tuneforge" in failures(root)
    (root / "plug_alpha" / "conf" / "method" / "lora.yaml").rename(root / "plug_alpha" / "conf" / "method" / "x.yaml")
    assert "it reads method.lr.sft, which is not there" in failures(root)
    assert run(["plugins", "check", str(root)]) == EXIT_REFUSED
    assert "Traceback" not in capfd.readouterr().err


def test_check_imports_and_binds(write):
    method = "name: mine\n_target_: plug_alpha.code.Mine\nlr: {sft: 1e-4}\n"
    files = {"plug_alpha/__init__.py": "", "plug_alpha/conf/method/mine.yaml": method}
    root = write("alpha", {**files, "plug_alpha/code.py": "import nowhere_to_be_found\nclass Mine:\n    pass\n"})
    assert "No module named 'nowhere_to_be_found'" in failures(root)


def test_check_refuses_a_method_whose_result_does_not_come_back(write):
    code = """\
from dataclasses import dataclass
from tuneforge.methods.lora import Lora
import torch

@dataclass(frozen=True, kw_only=True)
class Mine(Lora):
    def apply(self, model, adapter=None):
        model.get_input_embeddings().weight.data += 0.05 if adapter is None else 0.0
        return super().apply(model, adapter)
"""
    method = "defaults: [lora]\nname: mine\n_target_: plug_alpha.code.Mine\n"
    files = {"plug_alpha/__init__.py": "", "plug_alpha/conf/method/mine.yaml": method, "plug_alpha/code.py": code}
    root = write("alpha", files)
    with pytest.raises(RefusedError, match="saved at eval loss"):
        check_plugin(root)
