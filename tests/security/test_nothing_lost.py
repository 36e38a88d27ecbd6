"""Nothing that a run did not write is overwritten, deleted or written through, whatever lies where it is to write."""

import dataclasses
import random
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from stand_in import ROWS, digest, files, stand_in
from tuneforge import resume
from tuneforge.artifacts import owned, whole
from tuneforge.artifacts.claim import Claim
from tuneforge.artifacts.folder import MARK, mark, write_bytes
from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.rerun import read_run
from tuneforge.study import store

OTHERS = 1000
"""Random folders of the property test."""


@pytest.fixture(scope="module")
def composed():
    return compose()


# ---- folders that are not a run's


WHERE = (".", "''", "/", "~", "model", "model/config.json", "link", "dangling", "../here")


@pytest.mark.parametrize(("verb", "where"), [*(("train", w) for w in WHERE), *(("-m", w) for w in (".", "''", "link"))])
def test_a_folder_of_the_users_is_refused_with_what_is_in_it(canary, refused, monkeypatch, where, verb):
    here = Path.cwd()
    monkeypatch.setenv("HOME", str(here))
    (here / "model").mkdir()
    (here / "model" / "config.json").write_text("{}")
    (here / "config.yaml").write_text("mine: true")
    (here / "link").symlink_to(canary.folder)
    (here / "dangling").symlink_to(canary.mark)
    before = files(here)
    key = "hydra.sweep.dir" if verb == "-m" else "hydra.run.dir"
    said = refused(verb, f"{key}={where}", *(["optim.lr=1e-3,1e-4"] if verb == "-m" else []))
    assert said.startswith(f"error: {key}: ")
    assert files(here) == before
    named = {"model": "config.json", "model/config.json": "is a file", "link": "is a link", "dangling": "is a link"}
    assert named.get(where, "is empty" if where == "''" else "holds files that no run wrote: ") in said
    canary.before = canary.state() | {"mark": False}


def test_a_run_in_the_working_directory_leaves_the_users_model_and_files(canary, refused):
    """`hydra.run.dir=.` where model/, config.yaml and checkpoints/ are the user's, with the names that a run writes."""
    for name in ("model/config.json", "model/model.safetensors", "config.yaml", "checkpoints/step-00000001/mine"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("{}")
    before = files(Path.cwd())
    for where in (".", "model", "checkpoints"):
        said = refused("method=full", "model=hf", "model.path=./model", f"hydra.run.dir={where}")
        assert "holds files that no run wrote" in said
    assert files(Path.cwd()) == before
    canary.before = canary.state()


def test_an_empty_folder_is_a_place_for_a_run(composed, tmp_path):
    place = resume.fresh(dataclasses.replace(composed, run_dir=tmp_path))
    with place.claim:
        stand_in(composed, place)
    assert (tmp_path / MARK).is_file()


@pytest.fixture
def claim_sweep():
    return lambda folder: store.claim(folder, named=True, output_root=folder.parent, wanted="w").release()


def test_a_marker_that_was_copied_makes_no_run_of_a_folder(composed, claim_sweep, tmp_path):
    """Copied with `cp`, the marker of a killed run would let the next one write over config.yaml and metrics.jsonl."""
    mine = tmp_path / "mine"
    (mine / ".adapter.0badcafe.tmp").mkdir(parents=True)
    for kind, folder in (("run", mine), ("temporary", mine / ".adapter.0badcafe.tmp")):
        (tmp_path / kind).mkdir()
        mark(tmp_path / kind, kind)
        (folder / MARK).write_bytes((tmp_path / kind / MARK).read_bytes())
    for name in ("config.yaml", "metrics.jsonl", ".lock", ".adapter.0badcafe.tmp/thesis.tex"):
        (mine / name).write_text("mine")
    before = files(mine)
    for choose in (
        lambda: resume.fresh(dataclasses.replace(composed, run_dir=mine)),
        lambda: resume._named(composed, ROWS, str(mine)),
        lambda: claim_sweep(mine),
    ):
        with pytest.raises(TuneforgeError) as raised:
            choose()
        assert raised.value.problems[0].code == "folder-not-a-run"
    owned.tidy(mine, resume.RESULTS)
    assert files(mine) == before


def test_a_run_goes_into_no_sweep_and_a_sweep_into_no_run(composed, claim_sweep, tmp_path):
    for kind in ("run", "sweep"):
        (tmp_path / kind).mkdir()
        mark(tmp_path / kind, kind)
        (tmp_path / kind / "report.html").write_text("its page")
    before = files(tmp_path)
    for choose, says in (
        (lambda: resume.fresh(dataclasses.replace(composed, run_dir=tmp_path / "sweep")), "the folder of a sweep"),
        (lambda: resume._named(composed, ROWS, str(tmp_path / "sweep")), "the folder of a sweep"),
        (lambda: claim_sweep(tmp_path / "run"), "the folder of a run"),
    ):
        with pytest.raises(TuneforgeError, match=says):
            choose()
    assert files(tmp_path) == before


def test_a_refused_run_leaves_no_marker_in_a_folder_of_before_there_were_any(composed, tmp_path):
    root = tmp_path / "run"
    place = resume.fresh(dataclasses.replace(composed, run_dir=root))
    with place.claim:
        stand_in(composed, place)
    (root / MARK).unlink()
    before = files(root)
    other = dataclasses.replace(composed, tree={**composed.tree, "seed": 5}, run_dir=root)
    for choose, code in (
        (lambda: resume.fresh(other), "folder-in-use"),
        (lambda: resume._named(other, ROWS, str(root)), "config-changed"),
    ):
        with pytest.raises(TuneforgeError) as raised:
            choose()
        assert raised.value.problems[0].code == code
        assert files(root) == before


def test_a_range_test_is_not_written_over(composed, tmp_path):
    mark(tmp_path, "run")
    (tmp_path / resume.RANGE_TEST).write_text("{}")
    with pytest.raises(TuneforgeError, match="holds a learning-rate range test"):
        resume.fresh(dataclasses.replace(composed, run_dir=tmp_path))


def test_a_run_is_gone_on_with_by_a_link_to_it(composed, tmp_path):
    place = resume.fresh(dataclasses.replace(composed, run_dir=tmp_path / "run"))
    with place.claim:
        stand_in(composed, place)
    (tmp_path / "latest").symlink_to("run")
    again = resume._named(composed, ROWS, str(tmp_path / "latest"))
    with again.claim:
        assert again.folder.root == tmp_path / "run"


def test_an_answer_that_the_user_changed_is_kept_aside(tmp_path, capsys):
    with Claim(tmp_path / "sweep", kind="sweep"):
        best = tmp_path / "sweep" / "experiment" / "best.yaml"
        for text in ("a: 1", "a: 2"):
            owned.put_text(tmp_path / "sweep", "experiment/best.yaml", text)
        best.write_text("a: 3")
        owned.put_text(tmp_path / "sweep", "experiment/best.yaml", "a: 4")
    assert {p.name: p.read_text() for p in best.parent.iterdir()} == {"best.yaml": "a: 4", "kept-best.yaml-1": "a: 3"}
    assert "it is kept as" in " ".join(capsys.readouterr().out.split())


# ---- links where a run writes

WRITTEN = (
    *("run.json", "config.yaml", "provenance.json", "metrics.jsonl", "report.html", ".lock", "checkpoints"),
    *("checkpoints/step-00000002", "checkpoints/step-00000004", "adapter", "tensorboard", ".results.json"),
)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_link_at_a_name_that_a_run_writes_is_refused(composed, canary, tmp_path, name):
    """Planted in the folder of a run that is gone on with, and while it runs."""
    root = tmp_path / "run"
    place = resume.fresh(dataclasses.replace(composed, run_dir=root))
    with place.claim:
        (root / name).parent.mkdir(exist_ok=True)
        if name != ".lock":
            (root / name).symlink_to(canary.file if Path(name).suffix else canary.folder)
            with pytest.raises(TuneforgeError) as raised:
                stand_in(composed, place)
            assert raised.value.problems[0].code == "link-in-the-way"
            assert str(root / name) in str(raised.value)
            canary.check()
            (root / name).unlink()
        stand_in(composed, place)
    found = root / name
    if found.exists():
        found.rename(tmp_path / "moved")
    found.symlink_to(tmp_path / "moved" if name == "run.json" else canary.folder)
    with pytest.raises(TuneforgeError) as raised:
        resume._named(composed, ROWS, str(root))
    assert raised.value.problems[0].code == "link-in-the-way"


def test_a_file_is_written_nowhere_but_in_the_run_folder(tmp_path):
    mark(tmp_path, "run")
    with pytest.raises(TuneforgeError) as raised:
        write_bytes(tmp_path / "inner" / ".." / ".." / "outside", b"")
    assert raised.value.problems[0].code == "outside-the-run"
    assert not (tmp_path.parent / "outside").exists()


def test_a_librarys_folder_is_below_the_run(canary, refused, tmp_path):
    """Lightning's CSVLogger deletes a metrics.csv that it finds."""
    csv = "+logger.csv._target_=lightning.pytorch.loggers.CSVLogger"
    for key, value in (
        *(("save_dir", v) for v in (canary.folder, "../nest", "a/../../nest", "'~/x'", "'a/$HOME'")),
        *(("name", "../nest"), ("version", str(canary.folder))),
    ):
        more = [] if key == "save_dir" else ["+logger.csv.save_dir=logs"]
        said = refused("plan", csv, f"+logger.csv.{key}={value}", *more)
        assert f"logger.csv.{key}" in said
        assert "leads out of the run folder" in said


def test_a_database_that_is_not_mlflows_is_left_alone(tmp_path):
    from tuneforge.artifacts.trackers import _local

    assert _local(tmp_path / "new") == f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    with sqlite3.connect(tmp_path / "mlflow.db") as mine:
        mine.execute("CREATE TABLE mine (x)")
    mine.close()
    before = files(tmp_path)
    with pytest.raises(TuneforgeError, match="is no database of MLflow: it has the tables mine"):
        _local(tmp_path)
    (tmp_path / "new" / "mlflow.db").symlink_to(tmp_path / "mlflow.db")
    with pytest.raises(TuneforgeError, match="is a link to"):
        _local(tmp_path / "new")
    assert files(tmp_path).items() >= before.items()


def test_what_is_written_once_is_not_written_through_a_link(canary, refused, tmp_path):
    config = tmp_path / "axolotl.yaml"
    config.write_text("base_model: a/b\ndatasets: [{path: x.jsonl, type: alpaca}]\nadapter: lora\n")
    (tmp_path / "out.yaml").symlink_to(canary.mark)
    (tmp_path / "full.yaml").write_text("mine")
    for name in ("out.yaml", "full.yaml"):
        assert "exists already" in refused("import", str(config), "--out", str(tmp_path / name))
    Path("plugins").mkdir()
    Path("plugins/mine").symlink_to(canary.mark)
    assert "is there already" in refused("plugins", "new", "mine")


def test_hydras_own_sweeper_writes_into_no_folder_of_the_users(canary, refused):
    Path("multirun.yaml").write_text("mine")
    said = refused("-m", "hydra/sweeper=basic", "hydra.sweep.dir=.", "optim.lr=1e-3,1e-4")
    assert "holds files that no run wrote: multirun.yaml" in said
    canary.before = canary.state()
    assert Path("multirun.yaml").read_text() == "mine"


# ---- what the user put into a run's folder

ADDED = (
    *("adapter/NOTES.md", "adapter/inner/NOTES.md", "checkpoints/notes", "checkpoints/step-00000009/state.pt"),
    *("checkpoints/step-00000002/thesis.tex", "checkpoints/.step-00000007.tmp/x", "checkpoints/.step-00000004.old/x"),
    *("checkpoints/step-last/x", ".adapter.tmp/x", ".adapter.0badcafe.tmp/x", "model/config.json", "shared/mine.npz"),
    *("metrics.csv.bak", "wandb/mine", "checkpoints/.step-00000002.abcd.old/manifest.json"),
)


def test_a_run_that_is_gone_on_with_leaves_what_was_added_to_its_folder(composed, tmp_path):
    place = resume.fresh(dataclasses.replace(composed, run_dir=tmp_path / "run"))
    with place.claim:
        stand_in(composed, place, steps=6)
    added = {}
    for name in ADDED:
        path = place.folder.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"mine: {name}")
        added[name] = digest(path)
    again = resume._named(composed, ROWS, str(place.folder.root / "checkpoints" / "step-00000004"))
    with again.claim:
        stand_in(composed, again)
    owned.remove_named(place.folder.root / "shared", r"rows-[0-9a-f]{32}\.npz")
    left = files(place.folder.root)
    assert {n: left.get(n) for n in added} == added
    assert "checkpoints/step-00000006/state.pt" not in left
    assert "adapter/adapter_config.json" in left


def test_a_result_that_the_user_changed_is_kept_aside(composed, tmp_path, capsys):
    place = resume.fresh(dataclasses.replace(composed, run_dir=tmp_path / "run"))
    with place.claim:
        stand_in(composed, place)
        edited = tmp_path / "run" / "adapter" / "adapter_config.json"
        edited.write_text('{"mine": 1}')
        stand_in(composed, place)
    assert (tmp_path / "run" / "kept-adapter-1" / "adapter_config.json").read_text() == '{"mine": 1}'
    assert edited.read_text() == "{}"
    assert "it is kept as" in " ".join(capsys.readouterr().out.split())


# ---- a run that was killed before it had a record


def test_a_run_killed_before_its_record_is_started_afresh_where_it_was(composed, tmp_path, capsys):
    root = tmp_path / "run"
    root.mkdir()
    mark(root, "run")
    (root / "metrics.jsonl").write_text('{"step": 0}\n')
    here = dataclasses.replace(composed, run_dir=root)
    for choose in (
        lambda: resume._named(composed, ROWS, str(root)),
        lambda: resume.fresh(here),
        lambda: resume._newest(here, ROWS),
    ):
        place = choose()
        with place.claim:
            assert (place.folder.root, place.checkpoint) == (root, None)
        assert "is of a run that was ended before it had begun" in " ".join(capsys.readouterr().out.split())


# ---- any folder

NAMES = (
    *("run.json", "config.yaml", "provenance.json", "metrics.jsonl", "sweep.json", "study.db", ".lock", "report.html"),
    *("adapter", "model", "checkpoints", "shared", "experiment", "best.yaml", "step-00000004", "manifest.json", "0"),
    *("adapter_config.json", "adapter_model.safetensors", "state.pt", "thesis.tex", "x=1,2", "a\nb", ".git", "logs"),
    *(MARK, ".results.json", ".adapter.0badcafe.tmp", ".step-00000004.0badcafe.tmp", "lr_find.json", "rows-0.npz"),
)
COPIED = '{"made_by": "tuneforge", "kind": "%s", "id": "0", "folder": 1}'
"""A marker, of another folder."""
CONTENTS = ("", "{}", "[1]", '{"identity": "a", "status": "done", "data": {}}', "mine", '{"files": {"state.pt": {}}}')


def fill(folder: Path, rng: random.Random, outside: Path, depth: int = 0) -> None:
    """Random files, links and folders, half of them with names that runs use."""
    for name in rng.sample(NAMES, rng.randint(0 if depth else 1, 6)):
        kind = rng.random()
        if name == MARK:
            (folder / name).write_text(COPIED % rng.choice(["run", "sweep", "temporary"]))
        elif kind < 0.25 and depth < 3:
            (folder / name).mkdir()
            fill(folder / name, rng, outside, depth + 1)
        elif kind < 0.4:
            (folder / name).symlink_to(rng.choice([outside, outside / "egg", folder, "nowhere"]))
        else:
            (folder / name).write_text(rng.choice(CONTENTS) + rng.choice(["", str(rng.random())]))


def commands(composed, folder: Path) -> dict[str, Any]:
    """What is done with a folder, each by the function that its command calls first."""
    from tuneforge import adapters
    from tuneforge.locate import read_architecture
    from tuneforge.study.answer import Answer

    def fresh():
        place = resume.fresh(dataclasses.replace(composed, run_dir=folder))
        with place.claim:
            stand_in(composed, place)

    def go_on():
        with resume._named(composed, ROWS, str(folder)).claim:
            pass

    def sweep():
        store.claim(folder, named=True, output_root=folder.parent, wanted="w").release()

    def auto():
        elsewhere = dataclasses.replace(composed.config, output_root=str(folder))
        resume.unfinished(dataclasses.replace(composed, config=elsewhere))
        owned.tidy(folder, resume.RESULTS)
        whole.tidy(folder)
        return 2  # it starts elsewhere

    return {
        "run": fresh,
        "auto": auto,
        "from": lambda: read_run(folder),
        "diff": lambda: run(["plan", "--diff", str(folder), str(folder)]),
        "resume": go_on,
        "sweep": sweep,
        "report": lambda: run(["report", str(folder)]),
        "answer": lambda: Answer.read(folder),
        "adapter": lambda: adapters.read_config(str(folder), "model.adapter"),
        "model": lambda: read_architecture(str(folder)),
    }


def test_after_any_command_each_file_that_the_run_did_not_write_has_its_hash(composed, tmp_path, capsys):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "egg").write_text("whole")
    ended: dict[str, int] = {}
    for seed in range(OTHERS):
        rng = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        fill(folder, rng, outside)
        before = files(folder)
        name, command = rng.choice(list(commands(composed, folder).items()))
        try:
            done = command() in (None, 0)
        except TuneforgeError:
            done = False
        ended[f"{name} {done}"] = ended.get(f"{name} {done}", 0) + 1
        assert files(folder) == before, (seed, name)
        assert files(outside) == {"egg": digest(outside / "egg")}
    assert (outside / "egg").read_text() == "whole"
    assert sum(ended.values()) == OTHERS
    assert not any(n.endswith("True") for n in ended), ended  # none of them is a run
