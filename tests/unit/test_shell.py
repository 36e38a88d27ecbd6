"""Printed commands can be typed, whatever is in their paths; and `~` is the home folder wherever a path is typed."""

import dataclasses
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from stand_in import record_of
from tuneforge.artifacts.folder import write_json
from tuneforge.artifacts.record import Record
from tuneforge.artifacts.report import write_report
from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.shell import command, home_quoted, setting, typed
from tuneforge.study.answer import Answer
from tuneforge.study.store import Kept

ODD = (
    *(
        "a=b",
        "a,b",
        "a b",
        "it's",
        'a"b',
        "ünï",
        "#1",
        "${x}",
        r"\${x}",
        r"a\b",
        "end\\",
        r"q\"uote",
        "~x",
        "[a]",
        "{a: 1}",
    ),
    *(
        "$HOME",
        "`ls`",
        "a;b",
        "a&&b",
        "*",
        "?",
        "(x)",
        "null",
        "1e5",
        "true",
        "-x",
        "a:b",
        "a@b",
        "!x",
        "a|b",
        "1_000",
        " x ",
    ),
)


def value_of(override: str) -> object:
    """What Hydra and OmegaConf make of an override's value."""
    parsed = OverridesParser.create().parse_override(override)
    return OmegaConf.create({"x": parsed.value()}).x


@pytest.mark.parametrize("text", [*ODD, *(f"/home/me/{t}/run" for t in ODD)])
def test_any_path_survives_the_shell_and_hydra(text):
    assert value_of(setting("model.path", text)) == text
    assert shlex.split(typed("model.path", text)) == [setting("model.path", text)]
    printed = shlex.split(
        command("report", text, setting("model.path", text), config_dirs=[text], base=Path("r") / text)
    )
    assert printed[:3] == ["python", "-m", "tuneforge"]
    assert printed[3:7] == ["--config-dir", text, "--from", str(Path("r") / text)]
    assert value_of(printed[-1]) == text


FOLDER = "outputs/lr=1e-3,r=8 it's ünï"


@pytest.fixture(scope="module")
def composed():
    return compose()


def test_the_next_command_of_a_run_starts_from_its_result_and_resumes_nothing(composed, tmp_path):
    dirs = (tmp_path / "my conf",)
    overrides = ("method=lora", "resume=auto", "hydra.run.dir=x", "+model.adapter=old", "data.path=a.jsonl")
    asked = dataclasses.replace(composed, overrides=overrides, config_dirs=dirs)
    for trains_base, key, kept in (
        (False, "model.adapter", ["method=lora", "data.path=a.jsonl"]),
        (True, "model.path", ["method=lora", "data.path=a.jsonl", "model=hf"]),
    ):
        context = SimpleNamespace(method=SimpleNamespace(trains_base=trains_base))
        record = SimpleNamespace(context=context, composed=asked)
        printed = shlex.split(Record._next_command(record, Path(FOLDER)))
        assert printed[3:-1] == ["--config-dir", str(dirs[0]), *kept]
        assert printed[-1].startswith(f"{key}=")
        assert value_of(printed[-1]) == FOLDER


def test_the_page_of_a_run_shows_how_to_run_it_again(composed, tmp_path):
    asked = ["optim.lr=1e-3", "resume=auto", "hydra.run.dir=runs/x", 'data.path="a,b.jsonl"']
    write_json(tmp_path / "run.json", record_of(composed) | {"overrides": asked, "config_dirs": ["my conf"]})
    page = write_report(tmp_path).read_text()
    again = "python -m tuneforge --config-dir &#39;my conf&#39; optim.lr=1e-3 &#39;data.path=&#34;a,b.jsonl&#34;&#39;"
    assert again in page
    assert "resume=auto" not in page


def test_the_best_trial_of_a_sweep_is_a_command():
    kept = Kept("i", "s", "", ["eval/loss"], ["minimize"], ["method=lora"], [], [FOLDER])
    answer = Answer(Path("a sweep"), kept, [], [], {})
    trial = SimpleNamespace(user_attrs={"overrides": ["optim.lr=0.001"]})
    assert shlex.split(answer.command(trial))[3:] == ["--config-dir", FOLDER, "method=lora", "optim.lr=0.001"]
    # The experiment may choose options of the sweep's own folders.
    folders = ["--config-dir", "a sweep", "--config-dir", FOLDER]
    assert shlex.split(answer.best_command)[3:] == [*folders, "+experiment=best"]


def test_the_advice_of_a_folder_in_use_is_an_override(composed, tmp_path):
    from stand_in import ROWS, stand_in
    from tuneforge import resume
    from tuneforge.errors import TuneforgeError

    here = dataclasses.replace(composed, run_dir=tmp_path / FOLDER)
    place = resume.fresh(here)
    with place.claim:
        stand_in(here, place)
    with pytest.raises(TuneforgeError) as raised:
        resume.fresh(here)
    (advised,) = shlex.split(raised.value.problems[0].fix.partition("go on with it: ")[2])
    assert advised.startswith("resume=")
    resume._named(here, ROWS, str(value_of(advised))).claim.release()


# ---- the home folder


@pytest.mark.parametrize("form", ["~/x", "'~/x'", '"~/x"'])
def test_the_home_folder_is_expanded_in_every_path(tmp_path, monkeypatch, form):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    keys = ("output_root", "resume", "model.path", "model.adapter", "model.chat_template", "data.path")
    more = ("data.split.eval_path", "data.replay.path", "regularise.path")
    at = str(tmp_path / "x")
    made = compose(
        [
            *("model=hf", "data=file", "logger=mlflow"),
            *(home_quoted(f"{key}={form}") for key in (*keys, *more)),
            "model.frozen_adapters=['~/x']",
            "callbacks.forgetting_check.tasks={a: '~/x'}",
        ]
    )
    tree = made.tree
    found = [tree["output_root"], tree["resume"], *(tree["model"][k] for k in ("path", "adapter", "chat_template"))]
    found += [tree["data"]["path"], tree["data"]["split"]["eval_path"], tree["data"]["replay"]["path"]]
    found += [tree["regularise"]["path"], *tree["model"]["frozen_adapters"], tree["logger"]["mlflow"]["store"]]
    found += [tree["callbacks"]["forgetting_check"]["tasks"]["a"]]
    assert found == [at] * 12
    assert made.run_dir.parents[1] == Path(at)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_expanded_in_flags_and_words(tmp_path, monkeypatch, capfd, refused):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "e.yaml").write_text("# @package _global_\nseed: 3\n")
    assert run(["--cfg", "job", "--config-dir", "~/conf", "+experiment=e", "output_root=~/runs"]) == 0
    said = capfd.readouterr().out
    assert "seed: 3" in said
    assert f"output_root: {tmp_path / 'runs'}" in said
    for arguments in (["report", "~/run"], ["plan", "--from", "~/run"], ["plan", "~/run"], ["plan", "--diff", "~/run"]):
        assert str(tmp_path / "run") in refused(*arguments)
    assert "whose ~ is a user's home folder" in refused("plan", "output_root='~nobody-at-all/x'")
