"""Whatever door a misspelt key or a wrong value comes through, it is refused at once with what was meant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from misspellings import NAMES, VALUES
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError, near

GROUPS = ("model", "data", "method", "hardware", "strategy", "optim", "scheduler", "callbacks", "logger", "task_recipe")

# Runs each command of a list in one process; answers with what it said, its code and the processor seconds it took.
CHILD = """
import contextlib, io, json, sys, time
from tuneforge.cli import run
answers = []
for arguments in json.load(sys.stdin):
    err = io.StringIO()
    start = time.process_time()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        code = run(arguments)
    answers.append([code, err.getvalue(), time.process_time() - start])
heavy = sorted({'torch', 'transformers', 'lightning', 'peft'} & set(sys.modules))
json.dump([heavy, answers], sys.stdout)
"""


def forms(override: str) -> list[str]:
    return [prefix + override for prefix in ("", "+", "++")]


def ask(commands: list[list[str]], cwd: Path) -> list[tuple[int, str, float]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(commands), cwd=cwd, capture_output=True, text=True, check=True
    )
    heavy, answers = json.loads(done.stdout)
    assert heavy == []
    assert list(cwd.iterdir()) == []
    return [tuple(a) for a in answers]


def test_the_file_is_large_and_covers_every_group():
    assert len(NAMES) + len(VALUES) >= 110
    covered = {path.partition(".")[0] for _, path, _ in NAMES + VALUES}
    assert covered >= set(GROUPS) | {"seed", "trainer", "batch", "samples"}


def test_every_one_is_refused_on_the_command_line_without_torch_in_under_a_second(tmp_path):
    cases = [(form, path, says) for override, path, says in NAMES + VALUES for form in forms(override)]
    answers = ask([[form, "hydra.run.dir=out"] for form, _, _ in cases], tmp_path)
    for (form, path, says), (code, said, seconds) in zip(cases, answers, strict=True):
        assert code == 2, (form, said)
        assert "Traceback" not in said, said
        assert said.startswith(f"error: {path}"), (form, said)
        assert says in said, (form, said)
        assert "command line: " in said, (form, said)
        assert seconds < 1, (form, seconds)


@pytest.mark.parametrize(("override", "path", "says"), NAMES)
def test_a_name_within_two_edits_is_what_is_suggested(override, path, says):
    with pytest.raises(TuneforgeError) as raised:
        compose([override])
    (problem,) = raised.value.problems
    assert problem.path == path
    assert problem.origin == f"command line: {override}"
    assert says in problem.fix.partition("?")[0]
    wrong = override.partition("=")[2] if path in GROUPS else path.rpartition(".")[2]
    meant = says.strip("'").rpartition(".")[2]
    # The table holds slips of the finger and, where the key is elsewhere, the right word in the wrong place.
    assert near(wrong, [meant]) or meant in problem.fix


def as_yaml(override: str) -> dict[str, object]:
    """`a.b=c` as the content of an option file."""
    key, _, value = override.partition("=")
    node: object = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        node = {part: node}
    assert isinstance(node, dict)
    return node


IN_FILES = [c for c in NAMES + VALUES if not (c[1] in GROUPS and "." not in c[0].partition("=")[0])]


def write_options(folder: Path) -> list[tuple[str, str, str, Path]]:
    """Each case as an option file of its own in the group `experiment`."""
    (folder / "experiment").mkdir(parents=True)
    written = []
    for number, (override, path, says) in enumerate(IN_FILES):
        file = folder / "experiment" / f"case{number}.yaml"
        file.write_text("# @package _global_\n" + yaml.safe_dump(as_yaml(override)))
        written.append((file.stem, path, says, file))
    return written


def test_every_one_is_refused_in_an_option_file_of_a_config_dir(tmp_path):
    cases = write_options(tmp_path / "dir")
    assert len(cases) > 90
    (tmp_path / "run").mkdir()
    commands = [["--config-dir", str(tmp_path / "dir"), f"+experiment={name}"] for name, _, _, _ in cases]
    answers = ask(commands, tmp_path / "run")
    for (name, path, says, file), (code, said, seconds) in zip(cases, answers, strict=True):
        assert code == 2, (name, said)
        assert f"error: {path}" in said, (name, said)
        assert says in said, said
        assert str(file) in said, said
        assert seconds < 1


def test_one_report_holds_the_problems_of_every_door(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("defaults: [lora]\nname: mine\nrr: 3\n")
    with pytest.raises(TuneforgeError) as raised:
        compose(["method=mine", "seed=x", "+optim.lrr=1", "++data.packin=true", "scheduler=cosin"], [tmp_path])
    assert {p.path for p in raised.value.problems} == {"method.rr", "seed", "optim.lrr", "data.packin", "scheduler"}


def test_json_errors_are_one_object_a_problem(capfd):
    from tuneforge.cli import run

    assert run(["--json-errors", "seed=x", "optim.lrr=1"]) == 2
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert {line["code"] for line in lines} == {"wrong-value", "unknown-key"}
    assert {line["path"] for line in lines} == {"seed", "optim.lrr"}
    assert all(line["severity"] == "error" and line["message"] for line in lines)
    assert run(["seed=x"]) == 2
    assert capfd.readouterr().err.startswith("error: seed")
