"""A file of a run or sweep that is empty, cut off or another program's is named: exit code 2, no traceback."""

import json
import os
import shutil
import socket
import sqlite3
from contextlib import closing

import pytest

from stand_in import ROWS, files, stand_in
from tuneforge import resume
from tuneforge.artifacts.folder import is_marked, read_metrics, write_json
from tuneforge.artifacts.kept import mismatch, read_lines
from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.rerun import read_run
from tuneforge.study import store
from tuneforge.study.answer import Answer

DAMAGE = {
    "empty": lambda content: b"",
    "spaces": lambda content: b" \n\n",
    "cut": lambda content: content[: len(content) // 2],
    "a list": lambda content: b"[1]\n",
    "a number": lambda content: b"5\n",
    "foreign": lambda content: b'{"name": {"a": 1}}\n',
    "binary": lambda content: bytes(range(128, 256)),
    "deep": lambda content: b"[" * 1_500,
}


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    import dataclasses

    return dataclasses.replace(compose(), run_dir=tmp_path_factory.mktemp("made") / "run")


@pytest.fixture(scope="module")
def made(composed):
    """The folder of a run."""
    place = resume.fresh(composed)
    with place.claim:
        stand_in(composed, place)
        write_json(composed.run_dir / "provenance.json", {k: o.as_dict() for k, o in composed.origins.items()})
    return composed.run_dir


def resumed(composed, root):
    resume._named(composed, ROWS, str(root)).claim.release()


READERS = {
    "report": (lambda composed, root: run(["report", str(root)]), ("run.json", "provenance.json", "config.yaml")),
    "plan --diff": (lambda composed, root: run(["plan", "--diff", str(root), "seed=3"]), ("run.json", "config.yaml")),
    "--from": (lambda composed, root: read_run(root), ("run.json", "provenance.json", "config.yaml")),
    "resume": (resumed, ("run.json", "config.yaml")),
}
CASES = [(r, f, d) for r, (_, kept) in READERS.items() for f in kept for d in DAMAGE]


@pytest.fixture
def root(made, tmp_path):
    """A copy of the run's folder."""
    return shutil.copytree(made, tmp_path / "run")


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_damaged_file_of_a_run_is_named_by_every_reader(composed, root, capfd, case):
    reader, file, damage = case
    (root / "report.html").unlink()
    (root / file).write_bytes(DAMAGE[damage]((root / file).read_bytes()))
    before = files(root)
    try:
        code, said = READERS[reader][0](composed, root), ""
    except TuneforgeError as error:
        code, said = error.exit_code, str(error)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    if file == "config.yaml" and damage in ("foreign", "cut") and code != 2:
        assert reader == "report" or damage == "cut"  # half of a YAML file is one, and a page shows any mapping
        return
    assert code == 2, printed
    assert str(root / file) in (said + printed.err).replace("\n", "")
    assert files(root) == before


def test_a_line_that_was_cut_short_is_left_out_and_said_and_any_other_is_an_error(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [m["step"] for m in read_metrics(path)] == [1, 2]
    assert "its last line (line 3) was cut short" in " ".join(capsys.readouterr().out.split())
    for text, line in (('{"step": 1}\n{"st\n{"step": 3}\n', 2), ('{"step": 1}\n[2]\n', 2), ('{"step": "x"}\n', 1)):
        path.write_text(text)
        with pytest.raises(TuneforgeError, match=rf"metrics.jsonl line {line}"):
            read_metrics(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(TuneforgeError, match="line 1 is no UTF-8"):
        read_lines(path, {})
    # Cut within a character, or filled with zeros by a machine that lost its power; a line may hold U+2028.
    for last in ("\u00fc".encode()[:1], b"\0\0\0"):
        path.write_bytes('{"step": 1, "text": "\u2028\x85"}\n'.encode() + last)
        assert read_lines(path, {"step": int}) == [{"step": 1, "text": "\u2028\x85"}]
    path.write_bytes(b"")
    assert read_lines(path, {}) == []


@pytest.mark.parametrize("kept", ["", "{", '{"step": 1}\n{"st\n{"step": 2}\n'])
def test_a_run_killed_before_its_record_starts_afresh_whatever_its_log_is(tmp_path, kept):
    from tuneforge.artifacts.loggers import MetricsFile

    (tmp_path / "metrics.jsonl").write_text(kept)
    MetricsFile(tmp_path / "metrics.jsonl", keep_to_step=-1)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_log_with_a_torn_line_is_told_before_a_run_goes_on(composed, root):
    (root / "metrics.jsonl").write_text('{"step": 1}\n{"st{"step": 2}\n')
    before = files(root)
    with pytest.raises(TuneforgeError, match=r"metrics.jsonl line 2 is no JSON"):
        resumed(composed, root)
    assert files(root) == before


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_checkpoint_with_a_damaged_manifest_is_passed_over_and_stays(composed, made, tmp_path, capsys, damage):
    root = tmp_path / "run"
    shutil.copytree(made, root)
    manifest = root / "checkpoints" / "step-00000004" / "manifest.json"
    manifest.write_bytes(DAMAGE[damage](manifest.read_bytes()))
    place = resume._named(composed, ROWS, str(root))
    place.claim.release()
    assert place.checkpoint == root / "checkpoints" / "step-00000002"
    assert "step-00000004 is passed over" in " ".join(capsys.readouterr().out.split())
    assert (manifest.parent / "state.pt").is_file()


def test_auto_passes_over_a_run_whose_record_is_damaged_and_says_so(composed, made, tmp_path, capsys):
    import dataclasses

    shutil.copytree(made, tmp_path / "outputs" / "run")
    (tmp_path / "outputs" / "run" / "run.json").write_text('{"ident')
    config = dataclasses.replace(composed.config, output_root=str(tmp_path / "outputs"))
    here = dataclasses.replace(composed, config=config, run_dir=tmp_path / "new")
    resume._newest(here, ROWS).claim.release()
    said = " ".join(capsys.readouterr().out.split())
    assert "run.json cannot be read, and its run is passed over" in said
    assert "starting fresh" in said


PLACES_OF_RECORD = [
    *((k,) for k in ("exit", "git", "started", "written", "choices", "overrides", "config_dirs", "data", "parameters")),
    *((k,) for k in ("settled", "hardware", "metrics", "samples", "guards", "gates", "versions", "classes", "plugins")),
    *(
        ("choices", "data"),
        ("data", "train_rows"),
        ("data", "digests"),
        ("settled", "num_steps"),
        ("from_environment",),
    ),
    *(("hardware", "profile", "kind"), ("hardware", "present", "name"), ("classes", "before"), ("guards", "x")),
    *(
        ("guards", "x", "events"),
        ("guards", "x", "tiles"),
        ("guards", "x", "tables"),
        ("gates", 0),
        ("samples", "after"),
    ),
]


def test_a_record_with_another_programs_values_is_told_whatever_they_are(composed, root, capfd):
    """Any key may be missing or hold anything: each reader ends in an error of ours, or in an answer."""
    record = json.loads((root / "run.json").read_text())
    record |= {"guards": {"x": {"events": [], "tiles": [], "tables": []}}, "gates": [{"name": "x", "passed": True}]}
    told = 0
    for *above, last in PLACES_OF_RECORD:
        for value in (..., 5, {"a": 5}):
            changed = json.loads(json.dumps(record))
            node = changed
            for key in above:
                node = node[key]
            node[last] = value
            if value is ...:
                del node[last]
            write_json(root / "run.json", changed)
            for name, (read, _) in READERS.items():
                (root / "report.html").unlink(missing_ok=True)
                if name == "plan --diff":
                    continue  # it reads as --from does, and composes
                try:
                    told += read(composed, root) == 2
                except TuneforgeError:
                    told += 1
    assert told > 60
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("replaced", [5, [5], [{}], [{"where": 5, "expression": ""}], {"a": 5}])
def test_a_provenance_with_another_programs_values_is_told(root, replaced):
    kept = {"seed": {"where": "x", "expression": "", "written": "1", "replaced": replaced}}
    (root / "provenance.json").write_text(json.dumps(kept))
    with pytest.raises(TuneforgeError, match=r"provenance\.json is no provenance of a config: seed\.replaced"):
        read_run(root)


@pytest.mark.parametrize(
    "line", ['{"step": 1, "epoch": "x"}', '{"step": 1, "train/loss": [1]}', '{"step": 1, "x": {}}']
)
def test_a_log_with_other_values_than_numbers_is_told(root, capfd, line):
    (root / "report.html").unlink()
    (root / "metrics.jsonl").write_text(line + "\n")
    assert run(["report", str(root)]) == 2
    assert "metrics.jsonl" in capfd.readouterr().err


def test_a_trial_with_a_damaged_log_fails_alone(root):
    from tuneforge.study.run import _steps

    (root / "metrics.jsonl").write_text("[\n[\n")
    assert _steps(root) == 0


# ---- sweeps


@pytest.fixture
def swept(tmp_path):
    """A sweep's folder, with its record and its study."""
    import optuna

    root = tmp_path / "outputs" / "sweeps" / "one"
    held = store.claim(root, named=True, output_root=tmp_path / "outputs", wanted="w")
    store.open_study(store.local_storage(root), "s", ["minimize"])
    store.Kept("w", "s", "", ["eval/loss"], ["minimize"], [], [], []).write(root, "running")
    held.release()
    assert isinstance(Answer.read(root).trials, list)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return root


def test_a_folder_where_the_record_of_a_sweep_belongs_is_told(swept):
    (swept / "sweep.json").unlink()
    (swept / "sweep.json").mkdir()
    with pytest.raises(TuneforgeError, match=r"no sweep\.json that can be read"):
        store.claim(swept, named=True, output_root=swept.parent, wanted="w")


@pytest.mark.parametrize("file", ["sweep.json", "study.db"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_of_a_sweep_is_named_and_stays(swept, capsys, file, damage):
    (swept / file).write_bytes(DAMAGE[damage]((swept / file).read_bytes()))
    before = files(swept)
    with pytest.raises(TuneforgeError, match=file) as raised:
        Answer.read(swept)
    assert raised.value.problems[0].code == ("damaged-file" if file == "sweep.json" else "no-study")
    if file == "sweep.json":
        output_root = swept.parents[1]
        store.claim(swept.parent / "two", named=False, output_root=output_root, wanted="w").release()
        assert "its sweep is passed over" in " ".join(capsys.readouterr().out.split())
    assert files(swept) == before


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("run.json", "choices", {"model": 3}),
        ("run.json", "choices", {"model": {"a": 1}}),
        ("run.json", "pickers", {"model": 3}),
        ("provenance.json", "optim.lr", {"where": "x", "expression": "", "replaced": 3}),
        ("provenance.json", "optim.lr", {"where": "x", "expression": "", "replaced": [None]}),
        ("provenance.json", "optim.lr", {"where": "x", "expression": "", "written": 3}),
    ],
)
def test_a_value_of_another_type_is_named(root, file, key, value):
    kept = json.loads((root / file).read_text())
    (root / file).write_text(json.dumps(kept | {key: value}))
    with pytest.raises(TuneforgeError, match=rf"{file} is no .*{key}"):
        read_run(root)


STORED = [
    "UPDATE study_directions SET direction = 'x'",
    "DELETE FROM study_directions",
    "UPDATE trials SET number = 'x'",
    "UPDATE trials SET state = 'x'",
    "UPDATE trials SET datetime_start = 'x'",
    "UPDATE trial_values SET value_type = 'x'",
    "UPDATE trial_values SET value = 'x'",
    "DELETE FROM trial_values",
    "UPDATE trial_params SET param_value = 99",
    "UPDATE trial_params SET param_value = 'x'",
    "UPDATE trial_params SET distribution_json = '{}'",
    "UPDATE trial_user_attributes SET value_json = '3'",
    "UPDATE trial_user_attributes SET value_json = 'x'",
    "DELETE FROM trial_user_attributes",
    "DROP TABLE trial_intermediate_values",
]


@pytest.mark.parametrize("change", STORED)
def test_a_damaged_value_in_a_study_is_told(swept, change):
    import optuna

    study = optuna.load_study(study_name="s", storage=store.local_storage(swept))
    lr = optuna.distributions.FloatDistribution(0.0, 1.0)
    attributes = {"overrides": ["optim.lr=0.5"], "steps": 2}
    for _ in range(2):
        study.add_trial(
            optuna.create_trial(
                value=1.0, params={"optim.lr": 0.5}, distributions={"optim.lr": lr}, user_attrs=attributes
            )
        )
    assert len(Answer.read(swept).trials) == 2
    with closing(sqlite3.connect(swept / "study.db")) as database:
        database.execute(change)
        database.commit()
    with pytest.raises(TuneforgeError, match=r"study\.db has no results to read"):
        Answer.read(swept)


def test_a_study_that_is_missing_is_not_made_by_its_report(swept):
    (swept / "study.db").unlink()
    with pytest.raises(TuneforgeError, match=r"no file .*study\.db"):
        Answer.read(swept)
    with sqlite3.connect(swept / "study.db") as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = files(swept)
    with pytest.raises(TuneforgeError, match=r"study\.db has no results to read"):
        Answer.read(swept)
    assert files(swept) == before


# ---- adapters


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["empty", "cut", "a list", "binary"])
def test_a_damaged_adapter_is_named_before_weights_load(tmp_path, file, damage):
    import numpy as np
    from peft import LoraConfig
    from safetensors.numpy import save_file

    from tuneforge import adapters

    LoraConfig(base_model_name_or_path="x", task_type="CAUSAL_LM").save_pretrained(tmp_path)
    save_file({"w": np.ones(100, np.float32)}, tmp_path / "adapter_model.safetensors")
    adapters.read_config(str(tmp_path), "model.adapter")
    (tmp_path / file).write_bytes(DAMAGE[damage]((tmp_path / file).read_bytes()))
    with pytest.raises(TuneforgeError) as raised:
        adapters.read_config(str(tmp_path), "model.adapter")
    assert raised.value.problems[0].path == "model.adapter"
    assert str(tmp_path) in str(raised.value)


# ---- a process that is gone


def test_a_run_whose_process_is_gone_is_not_said_to_run(composed, made, tmp_path):
    from tuneforge.artifacts.claim import Claim, status_of, write_gone

    root = tmp_path / "run"
    shutil.copytree(made, root)
    (root / "report.html").unlink()
    record = json.loads((root / "run.json").read_text())
    (root / "run.json").write_text(json.dumps(record | {"status": "running", "exit": None}))
    assert is_marked(root)
    with Claim(root):
        assert status_of(root, "running") == "running"
        assert status_of(root, "done") == "done"
    (root / ".lock").write_text(f"process {os.getpid()} on x")  # left by a kill
    assert run(["report", str(root)]) == 0
    assert "interrupted (its process is gone)" in (root / "report.html").read_text()
    assert json.loads((root / "run.json").read_text())["status"] == "running"  # x is another machine, where it may run
    (root / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}")
    with Claim(root):
        write_gone(root)
        assert json.loads((root / "run.json").read_text())["status"] == "running"
    assert run(["report", str(root)]) == 0
    assert json.loads((root / "run.json").read_text())["status"] == "interrupted"


def test_shapes_name_the_place():
    shape = {"a": {"*": [int]}, "b": (bool, type(None))}
    assert mismatch({"a": {"x": [1, 2]}, "b": None, "more": 1}, shape) == ""
    assert mismatch({"a": {"x": [1, "2"]}, "b": None}, shape) == 'a.x[1] is "2"'
    assert mismatch({"a": {"x": 1}, "b": None}, shape) == "a.x is 1 where a list belongs"
    assert mismatch({"a": {}}, shape) == "has no 'b'"
    assert mismatch({"a": {"x": [True]}, "b": True}, shape) == "a.x[0] is true"
