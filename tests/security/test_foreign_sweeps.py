"""The folder of a sweep from elsewhere: what it says is read, and neither followed nor evaluated."""

import json
import os

import pytest

from tuneforge.errors import TuneforgeError
from tuneforge.study.answer import Answer
from tuneforge.study.store import DOCUMENTED, Kept, local_storage


@pytest.fixture
def sweep(canary, tmp_path):
    """A sweep's folder with the file that says where its study is."""
    root = tmp_path / "sweep"
    root.mkdir()

    def write(storage, **more):
        facts = {
            "identity": "x", "study": "s", "storage": storage, "objectives": ["eval/loss"], "directions": ["minimize"],
            "fixed": [], "trial": [], "config_dirs": [], "status": "done", "pid": 1, "written": "2026", **more,
        }  # fmt: skip
        (root / "sweep.json").write_text(json.dumps(facts))
        return root

    return write


ELSEWHERE = [
    "sqlite:///NEST/stolen.db",
    "sqlite:////ROOT/../nest/stolen.db",
    "sqlite:///relative.db",
    "sqlite:///file:NEST/stolen.db?uri=true",
    "sqlite:////ROOT/study.db?vfs=unix-none",
    "postgresql://evil.invalid/studies",
    "mysql://me:pass@evil.invalid/studies",
    "http://evil.invalid",
    "${oc.env:HOME}",
    "${oc.env:CANARY}",
    "sqlite:///${oc.env:CANARY}.db",
    "postgresql://${oc.env:HF_TOKEN}@evil.invalid/x",
    "${oc.env:STUDY_URL,sqlite:///NEST/stolen.db}",
    "${oc.decode:${oc.env:CANARY}}",
]


@pytest.mark.parametrize("storage", ELSEWHERE)
def test_no_other_database_is_opened(canary, sweep, refused, storage):
    root = sweep(storage.replace("NEST", str(canary.folder)))
    (root / "sweep.json").write_text((root / "sweep.json").read_text().replace("/ROOT", str(root)))
    said = refused("report", str(root))
    assert "hydra.sweeper.storage" in said
    assert "sings" not in said
    assert "pass@" not in said
    assert sorted(p.name for p in root.iterdir()) == ["sweep.json"]


def test_no_link_leads_to_another_database(canary, sweep, refused, tmp_path):
    root = sweep("")
    os.symlink(canary.folder / "stolen.db", root / "study.db")
    assert "outside of the sweep's folder" in refused("report", str(root))


def test_the_folders_own_database_and_the_documented_variable_are_opened(sweep, tmp_path):
    root = sweep("")
    assert Kept.read(root).url(root) == local_storage(root)
    assert Kept.read(sweep(f"sqlite:///{root}/other.db")).url(root) == f"sqlite:///{root}/other.db"
    assert Kept.read(sweep(DOCUMENTED)).url(root) == DOCUMENTED


def test_the_advice_of_the_error_opens_the_database(sweep, refused, tmp_path, monkeypatch):
    """What the user types is chosen by the user."""
    import optuna

    url = f"sqlite:///{tmp_path}/mine.db"
    optuna.create_study(storage=url, study_name="s", direction="minimize")
    root = sweep(url)
    said = refused("report", str(root))
    advised = said.rpartition("'hydra.sweeper.storage=")[2].partition("'")[0]

    from tuneforge.cli import run

    assert run(["report", str(root), f"hydra.sweeper.storage={advised}"]) == 0
    assert (root / "report.html").is_file()


@pytest.mark.parametrize("text", ["[]", "null", "{}", '{"identity": 1}', "[" * 100_000, "\xff"])
def test_what_is_no_sweep_is_told(sweep, refused, text):
    root = sweep("")
    (root / "sweep.json").write_text(text, encoding="latin1")
    assert f"{root}/sweep.json" in refused("report", str(root))


def test_recorded_overrides_are_shown_and_not_evaluated(canary, sweep, capfd):
    import optuna

    from tuneforge.cli import run

    fixed = ["data.path=${oc.env:CANARY}", "model.path='$(touch mark)'", f"+x='!!python/name:{canary.module}.run'"]
    root = sweep("", fixed=fixed)
    study = optuna.create_study(storage=local_storage(root), study_name="s", direction="minimize")
    trial = study.ask()
    trial.set_user_attr("overrides", ["optim.lr=${oc.env:CANARY}"])
    study.tell(trial, 1.0)
    assert run(["report", str(root)]) == 0
    said = capfd.readouterr().out + (root / "report.html").read_text() + (root / "experiment" / "best.yaml").read_text()
    assert "sings" not in said
    assert "$(touch mark)" in said
    root = sweep("", fixed=["model.path=$(touch mark)"])
    with pytest.raises(TuneforgeError, match="it is none"):
        Answer.read(root).tell()
