"""data=file: what is read from each kind of file, and what each broken one is told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tuneforge.data.file import file
from tuneforge.errors import TuneforgeError

A = {"instruction": "add 1 and 2", "output": "3"}
B = {"instruction": "say \u00fc\u2028x", "output": "\u00fc"}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    writer.write_table(arrow.Table.from_pylist(rows), path)
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def refused(path: object) -> tuple[str, str]:
    """(message, fix) of the one problem that reading ends with."""
    with pytest.raises(TuneforgeError) as caught:
        file(path=path if path is None else str(path))  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    assert problem.path == "data.path"
    assert problem.fix
    return problem.message, problem.fix


GOOD = {
    "jsonl": ("rows.jsonl", lines(A, B), ["rows.jsonl:1", "rows.jsonl:2"]),
    "ndjson": ("rows.ndjson", lines(A, B), ["rows.ndjson:1", "rows.ndjson:2"]),
    "upper case": ("ROWS.JSONL", lines(A, B), ["ROWS.JSONL:1", "ROWS.JSONL:2"]),
    "blank lines": ("rows.jsonl", "\n" + lines(A) + "  \n\n" + lines(B).rstrip(), ["rows.jsonl:2", "rows.jsonl:5"]),
    "BOM": ("rows.jsonl", "\ufeff" + lines(A, B), ["rows.jsonl:1", "rows.jsonl:2"]),
    "CRLF": ("rows.jsonl", lines(A, B).replace("\n", "\r\n"), ["rows.jsonl:1", "rows.jsonl:2"]),
    "escapes": ("rows.jsonl", f"{json.dumps(A)}\n{json.dumps(B)}", ["rows.jsonl:1", "rows.jsonl:2"]),
    "json list": ("rows.json", json.dumps([A, B], indent=1), ["rows.json[0]", "rows.json[1]"]),
    "json BOM": ("rows.json", "\ufeff" + json.dumps([A, B]), ["rows.json[0]", "rows.json[1]"]),
    "json object": ("rows.json", json.dumps({"version": 1, "data": [A, B]}), ["rows.json[0]", "rows.json[1]"]),
    "csv": (
        "rows.csv",
        "instruction,output\nadd 1 and 2,3\nsay \u00fc\u2028x,\u00fc\n",
        ["rows.csv:2", "rows.csv:3"],
    ),
    "csv BOM, CRLF, blank line": (
        "rows.csv",
        "\ufeffinstruction,output\r\nadd 1 and 2,3\r\n\r\nsay \u00fc\u2028x,\u00fc",
        ["rows.csv:2", "rows.csv:4"],
    ),
    "tsv": (
        "rows.tsv",
        "instruction\toutput\nadd 1 and 2\t3\nsay \u00fc\u2028x\t\u00fc\n",
        ["rows.tsv:2", "rows.tsv:3"],
    ),
}


@pytest.mark.parametrize("case", GOOD)
def test_every_format_gives_the_same_rows_and_its_own_origins(case: str, tmp_path: Path) -> None:
    name, content, origins = GOOD[case]
    rows = file(path=str(write(tmp_path / name, content)))
    assert [row.fields for row in rows] == [A, B]
    assert [row.origin for row in rows] == origins
    assert [(row.group, row.held_out) for row in rows] == [("", None)] * 2


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    rows = file(path=str(parquet(tmp_path / "rows.parquet", [A, B])))
    assert [row.fields for row in rows] == [A, B]
    assert [row.origin for row in rows] == ["rows.parquet row 1", "rows.parquet row 2"]


def test_parquet_keeps_conversations(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}
    assert file(path=str(parquet(tmp_path / "chat.parquet", [row])))[0].fields == row


def test_a_quoted_csv_field_may_span_lines_and_hold_the_delimiter(tmp_path: Path) -> None:
    text = 'text,n\n"one,\n""two""\n",1\nthree,2\n'
    rows = file(path=str(write(tmp_path / "rows.csv", text)))
    assert [row.fields for row in rows] == [{"text": 'one,\n"two"\n', "n": "1"}, {"text": "three", "n": "2"}]
    assert [row.origin for row in rows] == ["rows.csv:2", "rows.csv:5"]


def test_a_csv_field_may_be_longer_than_pythons_limit(tmp_path: Path) -> None:
    long = "x" * 200_000
    assert file(path=str(write(tmp_path / "rows.csv", f"text\n{long}\n")))[0].fields == {"text": long}


def test_the_index_column_that_pandas_writes_is_kept(tmp_path: Path) -> None:
    rows = file(path=str(write(tmp_path / "rows.csv", ",text\n0,a\n")))
    assert rows[0].fields == {"": "0", "text": "a"}


@pytest.mark.parametrize(
    ("fields", "group"),
    [
        ({"group": "a"}, "a"),
        ({"conversation_id": 7}, "7"),
        ({"conversation_id": 7.0}, "7"),
        ({"document_id": 0}, "0"),
        ({"document_id": "d", "group": "g"}, "g"),
        ({"document_id": "d", "group": None}, "d"),
        ({"document_id": "d", "group": ""}, "d"),
        ({"group": True}, ""),
        ({"group": 0.5}, ""),
        ({"group": ["a"]}, ""),
        ({"id": 7}, ""),
    ],
)
def test_group_comes_from_the_first_column_that_has_one(fields: dict[str, Any], group: str, tmp_path: Path) -> None:
    assert file(path=str(write(tmp_path / "rows.jsonl", lines(fields))))[0].group == group


# Which files


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write(folder / "b.jsonl", lines({"n": 2}))
    write(folder / "a.csv", "n\n1\n")
    write(folder / "._a.csv", b"\x00\x05")
    write(folder / "README.md", "no data")
    write(folder / "deep" / "b.jsonl", lines({"n": 3}))
    return folder


def test_a_folder_is_its_data_files_in_sorted_order(shards: Path) -> None:
    assert [row.origin for row in file(path=str(shards))] == ["a.csv:2", "b.jsonl:1"]


@pytest.mark.parametrize(
    ("pattern", "origins"),
    [
        ("*.jsonl", ["b.jsonl:1"]),
        ("[ab].*", ["a.csv:2", "b.jsonl:1"]),
        ("**/*.jsonl", ["b.jsonl:1", "deep/b.jsonl:1"]),
        ("deep/?.jsonl", ["b.jsonl:1"]),
    ],
)
def test_a_glob_is_its_matches_in_sorted_order(pattern: str, origins: list[str], shards: Path) -> None:
    assert [row.origin for row in file(path=f"{shards}/{pattern}")] == origins


def test_paths_may_be_relative_and_start_at_home(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shards)
    monkeypatch.setenv("HOME", str(shards))
    origins = [[row.origin for row in file(path=path)] for path in ("b.jsonl", "./b.jsonl", "*.jsonl", "~/b.jsonl")]
    assert origins == [["b.jsonl:1"]] * 4
    assert [row.origin for row in file(path="deep/../b.jsonl")] == ["b.jsonl:1"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    assert file(path=str(write(tmp_path / "rows[1].jsonl", lines(A))))[0].origin == "rows[1].jsonl:1"


@pytest.mark.parametrize(("path", "what"), [(None, "null"), ("", "empty"), ("  ", "empty")])
def test_no_path_is_refused(path: str | None, what: str) -> None:
    message, fix = refused(path)
    assert message == f"data=file needs a file, a folder or a glob, and this is {what}"
    assert fix == "data.path=rows.jsonl"


def test_a_missing_file_names_the_folder_and_the_near_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "prefs.jsonl", lines(A))
    write(tmp_path / "notes.txt", "x")
    monkeypatch.chdir(tmp_path)
    message, fix = refused("prefs.jsnol")
    assert message == f"no such file: prefs.jsnol (looked in {tmp_path})"
    assert fix == "did you mean 'prefs.jsonl'? data files there: prefs.jsonl"


def test_a_missing_file_lists_at_most_eight_others(tmp_path: Path) -> None:
    for number in range(8):
        write(tmp_path / f"{number}.csv", "n\n1\n")
    assert refused(tmp_path / "something-else.jsonl")[1].endswith("6.csv, 7.csv")
    write(tmp_path / "8.csv", "n\n1\n")
    assert refused(tmp_path / "something-else.jsonl")[1].endswith("6.csv, 7.csv ...")


def test_a_missing_folder_says_how_far_the_path_exists(tmp_path: Path) -> None:
    message, _ = refused(tmp_path / "dta" / "deep" / "rows.jsonl")
    assert message == f"no such folder: {tmp_path}/dta/deep (it exists up to {tmp_path})"


def test_a_dangling_link_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").symlink_to("gone.jsonl")
    message, _ = refused(tmp_path / "rows.jsonl")
    assert message.endswith("rows.jsonl is a link to gone.jsonl, which does not exist")


def test_an_address_is_no_file() -> None:
    message, fix = refused("https://example.org/rows.jsonl")
    assert message == "https://example.org/rows.jsonl is an address; data=file reads local files"
    assert "download it" in fix


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        ("rows.txt", "rows.txt ends in '.txt'", "known data files: .csv .json .jsonl .ndjson .parquet .tsv"),
        ("rows", "rows has no extension", "known data files: "),
        ("rows.jsonl.gz", "rows.jsonl.gz ends in '.gz'", "unpack it first; known data files: "),
    ],
)
def test_an_unknown_extension_lists_the_known(name: str, what: str, hint: str, tmp_path: Path) -> None:
    message, fix = refused(write(tmp_path / name, lines(A)))
    assert message.endswith(f"{what}, so its format is unknown")
    assert fix.startswith(hint)


def test_a_glob_does_not_skip_what_it_cannot_read(shards: Path) -> None:
    message, _ = refused(shards / "*")
    assert "README.md ends in '.md'" in message


def test_a_glob_without_a_match_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message, fix = refused("*.jsonl")
    assert message == f"no file matches the glob *.jsonl (looked from {tmp_path})"
    assert "quote it" in fix


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path / "notes.txt", "x")
    message, fix = refused(tmp_path)
    assert message == f"no data file in the folder {tmp_path}, which holds: notes.txt"
    assert fix == "known data files: .csv .json .jsonl .ndjson .parquet .tsv"
    write(tmp_path / "deep" / "rows.jsonl", lines(A))
    assert refused(tmp_path)[1].endswith(f"data.path='{tmp_path}/**/*.jsonl'")


def test_an_unreadable_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    path = write(tmp_path / "rows.jsonl", lines(A))
    monkeypatch.setattr(Path, "read_bytes", denied)  # root, whom CI may be, reads a file of any mode
    message, fix = refused(path)
    assert message == "cannot read rows.jsonl: Permission denied"
    assert fix == f"check its permissions: ls -l {path}"


def test_a_name_too_long_is_a_problem_and_not_a_crash() -> None:
    message, _ = refused("x" * 5000 + ".jsonl")
    assert message.endswith("File name too long")


# Broken content: (file name, content, parts of the message, part of the fix)

BAD: dict[str, tuple[str, str | bytes, list[str], str]] = {
    "empty jsonl": ("r.jsonl", "", ["r.jsonl is empty"], "at least one row"),
    "empty json": ("r.json", "", ["r.json is empty"], "at least one row"),
    "empty csv": ("r.csv", "", ["r.csv is empty"], "at least one row"),
    "empty parquet": ("r.parquet", "", ["r.parquet is empty"], "at least one row"),
    "blank jsonl": ("r.jsonl", "\ufeff\n \r\n", ["r.jsonl is empty: it holds blank lines only"], "at least one row"),
    "blank csv": ("r.csv", "\n\n", ["r.csv is empty"], "at least one row"),
    "empty list": ("r.json", "[]", ["r.json is an empty list"], "at least one row"),
    "header only": ("r.csv", "a,b\n", ["r.csv has a header and no rows"], "at least one row"),
    "broken line": (
        "r.jsonl",
        '{"a": 1}\n\n{"a" 2}\n',
        ["r.jsonl has 1 broken line:\n", "line 3, column 6: Expecting ':' delimiter, near '{\"a\" 2}'"],
        "one JSON object",
    ),
    "several broken lines": (
        "r.jsonl",
        '{"a": 1}\n{\n3\n[4]\nnull\n"x"\n',
        [
            "has 5 broken lines:",
            "line 2, column 2: ",
            "line 3 is a number, not an object",
            "line 4 is a list",
            "\n  and 2 more",
        ],
        "one JSON object",
    ),
    "json named jsonl": ("r.jsonl", json.dumps([A, B], indent=1), ["line 1, column 2"], "rename it to .json"),
    "list on one line": ("r.jsonl", json.dumps([A, B]), ["line 1 is a list, not an object"], "rename it to .json"),
    "key twice": ("r.jsonl", '{"a": 1, "b": {"c": 1, "c": 2}}', ["line 1, one object has these keys twice: 'c'"], ""),
    "too deep": ("r.jsonl", "[" * 200_000, ["line 1, nested too deeply"], ""),
    "too many digits": ("r.jsonl", '{"a": ' + "1" * 5000 + "}", ["line 1, Exceeds the limit (4300 digits)"], ""),
    "latin-1": (
        "r.jsonl",
        lines(A).encode() + '{"a": "\u00fc"}'.encode("latin-1"),
        ["r.jsonl is not UTF-8: line 2, byte offset 53 (0xfc)"],
        "iconv -f CP1252 -t UTF-8 r.jsonl > utf8-r.jsonl",
    ),
    "utf-16": ("r.csv", "a\n1\n".encode("utf-16"), ["r.csv is not UTF-8: line 1, byte offset 0"], "iconv -f UTF-16 "),
    "utf-16le": ("r.csv", "a\n1\n".encode("utf-16-le"), ["a NUL byte: line 1, byte offset 1"], "iconv -f UTF-16LE "),
    "utf-16be": ("r.csv", "a\n1\n".encode("utf-16-be"), ["a NUL byte: line 1, byte offset 0"], "iconv -f UTF-16BE "),
    "NUL": ("r.jsonl", lines(A, "") + "\0", ["r.jsonl holds a NUL byte: line 3, byte offset 49"], "damaged or binary"),
    "jsonl named json": ("r.json", lines(A, B), ["r.json is JSONL (one object on each line), not JSON"], ".jsonl"),
    "cut in a list": ("r.json", '[{"a": 1},\n{"a": 2}', ["cut off", "line 2, column 9"], "download it again"),
    "cut in a string": ("r.json", '[{"a": "x', ["r.json is cut off: it ends inside a value"], "download it again"),
    "cut in a word": ("r.json", '[{"a": tru', ["r.json is cut off"], "download it again"),
    "broken json": (
        "r.json",
        '[{"a": 1},\n {"a" 2}]',
        ["r.json is broken: line 2, column 7: Expecting ':'"],
        "correct",
    ),
    "two values": ("r.json", "[1]\n[2]", ["r.json is broken: line 2, column 1: Extra data"], "correct"),
    "two objects": ("r.json", '{\n"a": 1}\n{}', ["r.json is broken: line 3, column 1: Extra data"], "correct"),
    "json key twice": ("r.json", '[{"a": 1, "a": 2}]', ["r.json is broken: one object has these keys twice"], ""),
    "not objects": (
        "r.json",
        '[{"a": 1}, 1, "x", null, []]',
        ["4 of 5 rows in r.json are not objects:", "r.json[1] is a number", "r.json[2] is text", "and 1 more"],
        "a list of objects",
    ),
    "scalar": ("r.json", "3", ["r.json is a number"], "a list of objects"),
    "no list": ("r.json", '{"a": 1, "b": [1]}', ["exactly one list of objects; found: none (keys: a, b)"], "orient="),
    "two lists": ("r.json", '{"train": [{}], "test": [{}]}', ["found: 2 of them (train, test)"], "list of objects"),
    "csv widths": (
        "r.csv",
        "a,b\n1,2\n\n1\n1,2,3\n1,2\n",
        ["r.csv has 2 rows whose fields are not the header's 2:", "line 4: 1 fields", "line 5: 3 fields"],
        "in quotes",
    ),
    "csv width": (
        "r.csv",
        "a\tb,c\n1\n",
        ["r.csv has 1 row whose fields are not the header's 2:\n  line 2: 1"],
        "quotes",
    ),
    "csv open quote in the header": (
        "r.csv",
        'a,"b\n1,2\n',
        ["in the row that starts on line 1: "],
        "close each quote",
    ),
    "csv header twice": ("r.csv", "b,a,c,a\n1,2,3,4\n", ["of r.csv names columns twice: 'a'"], "its own name"),
    "csv semicolons": ("r.csv", "a;b\n1;2\n", ["one column, 'a;b'", "separated by ';', not ','"], "commas in .csv"),
    "tsv with commas": ("r.tsv", "a,b\n1,2\n", ["separated by ',', not '\\t'"], "tabs in .tsv"),
    "csv open quote": ("r.csv", 'a,b\n1,2\n1,"x\n1,2\n', ["in the row that starts on line 3: unexpected end"], "close"),
    "csv stray quote": ("r.csv", 'a,b\n"x" y,2\n', ["in the row that starts on line 2: "], "double a quote"),
    "no parquet": ("r.parquet", "PAR1 or not", ["r.parquet is not a readable Parquet file: "], "again"),
}


@pytest.mark.parametrize("case", BAD)
def test_broken_content_is_refused_with_its_place_and_a_fix(case: str, tmp_path: Path) -> None:
    name, content, parts, fix = BAD[case]
    if name.endswith(".parquet") and content:
        pytest.importorskip("pyarrow")
    message, hint = refused(write(tmp_path / name, content))
    assert [part for part in parts if part not in message] == [], message
    assert fix in hint


def test_one_broken_file_of_a_folder_gives_no_rows_at_all(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(A))
    write(tmp_path / "b.jsonl", "{")
    assert refused(tmp_path)[0].startswith("b.jsonl has 1 broken line")


def test_a_parquet_without_rows_or_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as writer

    column = arrow.array([1])
    writer.write_table(arrow.table([column, column], names=["a", "a"]), tmp_path / "twice.parquet")
    writer.write_table(arrow.table([column], names=["a"]).slice(1), tmp_path / "none.parquet")
    assert refused(tmp_path / "twice.parquet")[0] == "twice.parquet has columns of the same name: 'a'"
    assert refused(tmp_path / "none.parquet")[0] == "none.parquet has columns and no rows"


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    message, fix = refused(write(tmp_path / "r.parquet", b"PAR1"))
    assert message.startswith("r.parquet is Parquet, which needs pyarrow")
    assert fix == "pip install 'tuneforge[data]'"


def test_a_message_shows_control_characters_as_escapes(tmp_path: Path) -> None:
    message, _ = refused(write(tmp_path / "r.jsonl", '{"a": \x1b[31m}'))
    assert "\\x1b[31m" in message
    assert "\x1b" not in message


def test_the_readers_import_nothing_heavy() -> None:
    code = (
        "import sys; import tuneforge.data.file, tuneforge.data.formats, tuneforge.data.split;"
        "print([m for m in ('torch', 'numpy', 'pandas', 'pyarrow', 'datasets', 'transformers') if m in sys.modules])"
    )
    source = str(Path(sys.modules["tuneforge"].__path__[0]).parent)
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": source}
    )
    assert child.stdout.strip() == "[]"
