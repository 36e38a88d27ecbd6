"""A folder's own splits: validation files are evaluated, test files left out, and what is not clear is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tuneforge.data.file import file
from tuneforge.data.source import Source, read
from tuneforge.errors import TuneforgeError
from tuneforge.schema.data import Data, Split


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": f"{name} {i}"}) + "\n" for i in range(3)))
    return folder


def source(path: object, **split: Any) -> Source:
    data = Data(path=str(path), split=Split(**split))
    return read(data, {"_target_": "tuneforge.data.file.file", "path": str(path)}, 0)


def names(examples: Any) -> set[str]:
    return {example.text.split()[0] for example in examples}


def refused(path: object) -> Any:
    with pytest.raises(TuneforgeError) as caught:
        file(path=str(path))
    (problem,) = caught.value.problems
    assert problem.path == "data.path"
    return problem


SETS = {
    "files": ("train.jsonl", "validation.jsonl", "test.jsonl"),
    "short names": ("train.jsonl", "val.jsonl", "test.jsonl"),
    "dev": ("train.jsonl", "dev.jsonl", "test.jsonl"),
    "valid": ("training.jsonl", "valid.jsonl", "testing.jsonl"),
    "eval": ("Train.jsonl", "eval.jsonl", "Test.jsonl"),
    "folders": ("train/a.jsonl", "validation/a.jsonl", "test/a.jsonl"),
    "deep folders": ("train/x/a.jsonl", "dev/x/a.jsonl", "test/x/a.jsonl"),
    "hub": ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
    "prefix": ("squad_train.jsonl", "squad_dev.jsonl", "squad-test.jsonl"),
    "suffix": ("train_sft.jsonl", "val_sft.jsonl", "test_sft.jsonl"),
    "folders and files": ("train/test_of_faith.jsonl", "val.jsonl", "test/train.jsonl"),
    "numbered": ("train_1.jsonl", "val_1.jsonl", "test_1.jsonl"),
    "sets": ("trainset.jsonl", "dev_set.jsonl", "testset.jsonl"),
    "short": ("trn.jsonl", "evals.jsonl", "tst.jsonl"),
    "humps": ("mySetTrain.jsonl", "mySetVal.jsonl", "mySetTest.jsonl"),
    "held out": ("a.jsonl", "held-out.jsonl", "tests/b.jsonl"),
    "rest is train": ("rows.jsonl", "val.jsonl", "test.jsonl"),
}


@pytest.mark.parametrize("case", SETS)
def test_a_folder_keeps_its_splits(case: str, tmp_path: Path, capsys: Any) -> None:
    train, validation, test = SETS[case]
    found = source(fill(tmp_path / "set", *SETS[case]))
    assert (names(found.train), names(found.eval)) == ({train}, {validation})
    said = " ".join(capsys.readouterr().out.split())
    assert f"train: {train}; eval: {validation}; left out (test): {test}" in said
    (advised,) = re.findall(r"to evaluate on it: data\.split\.eval_path=(\S+)", said)
    found = source(tmp_path / "set", eval_path=advised)
    assert (names(found.train), names(found.eval)) == ({train}, {test})
    assert "3 rows that data.path marks as held out are left out" in " ".join(capsys.readouterr().out.split())


def test_a_glob_keeps_splits_too(tmp_path: Path) -> None:
    fill(tmp_path / "set", *SETS["folders"])
    found = source(f"{tmp_path}/set/**/*.jsonl")
    assert (names(found.train), names(found.eval)) == ({"train/a.jsonl"}, {"validation/a.jsonl"})
    found = source(f"{tmp_path}/set/train/*.jsonl", eval_path=f"{tmp_path}/set/test", by="auto")
    assert (names(found.train), names(found.eval)) == ({"train/a.jsonl"}, {"test/a.jsonl"})
    found = source(f"{tmp_path}/set/train/*.jsonl", eval_path=f"{tmp_path}/set")
    assert names(found.eval) == {"validation/a.jsonl"}


def test_without_validation_files_rows_are_held_out_of_the_train_files(tmp_path: Path) -> None:
    found = source(fill(tmp_path / "set", "train.jsonl", "test.jsonl"), eval_fraction=0.3)
    assert names([*found.train, *found.eval]) == {"train.jsonl"}
    assert len(found.eval) == 1


def test_another_way_to_split_may_be_chosen(tmp_path: Path) -> None:
    found = source(fill(tmp_path / "set", *SETS["files"]), by="row", eval_fraction=0.5)
    assert names([*found.train, *found.eval]) == {"train.jsonl", "validation.jsonl"}
    assert len(found.eval) == 3


@pytest.mark.parametrize(
    "files", [("a.jsonl", "b.jsonl"), ("train_1.jsonl", "train_2.jsonl"), ("test_cases.jsonl", "dev_team.jsonl")]
)
def test_names_of_one_kind_are_no_splits(files: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    assert {row.held_out for row in file(path=str(fill(tmp_path, *files)))} == {None}
    assert capsys.readouterr().out == ""


def test_files_of_no_split_beside_a_train_file_are_refused_and_the_advice_works(tmp_path: Path) -> None:
    problem = refused(fill(tmp_path / "set", "train.jsonl", "val.jsonl", "more.jsonl"))
    assert "train.jsonl" in problem.message
    assert "more.jsonl" in problem.message
    path, held = re.findall(r"=(\S+?)(?=[\s;])", problem.fix)
    found = source(path, eval_path=held)
    assert (names(found.train), names(found.eval)) == ({"train.jsonl"}, {"val.jsonl"})


def test_a_folder_without_train_files_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    problem = refused(fill(tmp_path / "set", "val.jsonl", "test.jsonl"))
    assert len(file(path=problem.fix.partition("data.path=")[2])) == 3


def test_the_advice_for_files_further_down_names_their_suffix(tmp_path: Path) -> None:
    problem = refused(fill(tmp_path / "set", "x/rows.ndjson", "y/rows.ndjson").parent / "set")
    (advised,) = re.findall(r"data\.path='(\S+)'", problem.fix)
    assert len(file(path=advised)) == 6


@pytest.mark.parametrize("unread", ["more/b.jsonl", "b.jsonl.gz", "b.arrow"])
def test_files_of_a_folder_that_are_not_read_are_named(unread: str, tmp_path: Path, capsys: Any) -> None:
    folder = fill(tmp_path, "a.jsonl", "README.md", "more/notes.txt")
    assert len(file(path=str(folder))) == 3
    assert capsys.readouterr().out == ""
    assert len(file(path=str(fill(folder, unread)))) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert f"that are not read: {unread}" in said
    for advised in re.findall(r"data\.path='(\S+)'", said):
        assert len(file(path=advised)) == 6
    assert ("data.path='" in said) == (unread == "more/b.jsonl")


def tagged(path: Path, *splits: object) -> Path:
    path.write_text(
        "".join(json.dumps({"text": f"{split} {i}", "split": split}) + "\n" for i, split in enumerate(splits))
    )
    return path


def test_a_column_of_splits_is_kept_too(tmp_path: Path, capsys: Any) -> None:
    path = tagged(tmp_path / "r.jsonl", "train", "train", "val", "test", "train")
    found = source(path)
    assert (names(found.train), names(found.eval)) == ({"train"}, {"val"})
    assert "3 train, 1 eval, 1 left out (test)" in capsys.readouterr().out
    data = Data(path=str(path), columns={"split": None}, split=Split(eval_fraction=0.4))
    found = read(data, {"_target_": "tuneforge.data.file.file", "path": str(path)}, 0)
    assert len(found.train) + len(found.eval) == 5


@pytest.mark.parametrize("splits", [("train", "train", "train"), ("train", "a", "test"), ("train", None, "test")])
def test_another_column_named_split_is_metadata(splits: tuple[object, ...], tmp_path: Path) -> None:
    found = source(tagged(tmp_path / "r.jsonl", *splits), eval_fraction=0.4)
    assert len(found.train) + len(found.eval) == 3
    assert found.metadata == ("split",)


def test_a_column_of_splits_without_train_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    path = tagged(tmp_path / "r.jsonl", "val", "test", "val")
    with pytest.raises(TuneforgeError, match="names no row as of the train split") as caught:
        source(path)
    assert caught.value.problems[0].fix.endswith("data.columns.split=null")
