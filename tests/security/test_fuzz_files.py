"""Random data files: an exit code that means something, and no hang. See test_fuzz.py."""

import bz2
import copy
import csv
import datetime
import decimal
import gzip
import io
import json
import lzma
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from fuzzing import NASTY, TYPES, misspelt, run_all, seeds, torn

# ---- data files

ASKED, ANSWERED = {"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ROWS: list[dict[str, Any]] = [
    {"instruction": "add {n}", "input": "1, {n}", "output": "it is {n}"},
    {"instruction": "add {n}", "output": "it is {n}", "history": [["a", "b"]], "system": "be brief"},
    {"messages": [{"role": "system", "content": "be brief"}, ASKED, ANSWERED]},
    {"messages": [ASKED, {**ANSWERED, "train": False}, ASKED, {**ANSWERED, "weight": 1}], "id": "{n}"},
    {"messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, ANSWERED], "tools": [TOOL]},
    {"conversations": [{"from": "human", "value": "a{n}?"}, {"from": "gpt", "value": "b."}], "system": "s"},
    {"prompt": "say {n}", "completion": " {n}"},
    {"prompt": [ASKED], "completion": [ANSWERED]},
    {"text": "the text {n}. Привет, 你好, naïve 😀", "source": "web", "group": "{n}"},
    {"text": "the text {n}", "label": "even"},
    {"prompt": "say {n}", "chosen": "{n}", "rejected": "no", "split": "train"},
    {"question": "what is {n}?", "context": "c", "answers": {"text": ["{n}"], "answer_start": [0]}},
]
NAMES = sorted(
    {name for row in ROWS for name in (*row, *ASKED, *CALL)} | {"tag", "labels", "weight", "train", "names", ""}
)
PYTHON = [datetime.datetime(2026, 11, 28), datetime.timedelta(1), decimal.Decimal("1.5"), b"\xff", 2**63, float("nan")]
SUFFIXES = [".jsonl", ".jsonl", ".ndjson", ".json", ".json", ".csv", ".tsv", ".parquet", ".parquet"]
WRONG = [".arrow", ".gz", ".txt", "", ".jsonl.gz", ".JSONL", ".xlsx"]
ENCODINGS = ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "gb18030", "shift_jis", "koi8_r"]
CODECS = [
    *ENCODINGS,
    "idna",
    "punycode",
    "unicode_escape",
    "rot13",
    "hex",
    "utf-7",
    "undefined",
    "mbcs",
    "x",
    "utf-8\0",
]
PACKED = [gzip.compress, bz2.compress, lzma.compress]
OPTIONS = [
    *(f"data.format={f}" for f in ("alpaca", "chat", "prompt_completion", "text", "classification", "preference")),
    *("data.on_bad=skip", "data.train_on=all", "data.packing=false", "data.max_length=16", "data.max_length=1"),
    *("data.overlong=drop", "data.overlong=chunk", "data.special_tokens_in_text=refuse", "data.shuffle_answers=true"),
    *("data.split.by=group", "data.split.by=source", "data.split.eval_fraction=0", "data.split.eval_fraction=1"),
    *("task_recipe=classification", "task_recipe=pretrain", "task_recipe=chat", "data.labels=[a,b]", "data.max_rows=2"),
    *("data.split.eval_path=OTHER", "data.replay.fraction=0.5 data.replay.path=OTHER", "model.chat_template=chatml"),
]  # fmt: skip


def filled(value: Any, number: int) -> Any:
    """A copy with the number of the row in its texts."""
    if isinstance(value, dict):
        return {key: filled(inner, number) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, number) for inner in value]
    return value.replace("{n}", str(number)) if isinstance(value, str) else value


def changed(node: Any, rng: random.Random) -> None:
    """Change a key or a value somewhere in a row."""
    while True:
        if not node:
            return
        key = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or rng.random() < 0.4:
            break
        node = node[key]
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice([*NAMES, misspelt(str(key), rng), rng.choice(NASTY)])] = node.pop(key)
    elif kind == 2 and isinstance(node, dict):
        node[rng.choice([*NAMES, rng.choice(NASTY)])] = copy.deepcopy(rng.choice([*TYPES, *node.values()]))
    elif kind == 3 and isinstance(node, list):
        node.insert(key, copy.deepcopy(rng.choice([*TYPES, ASKED, ANSWERED, CALL])))
    else:
        node[key] = copy.deepcopy(rng.choice([*TYPES, [ASKED, ANSWERED], [{"type": "text", "text": "x"}], NASTY[0]]))


def rows_of(rng: random.Random) -> list[Any]:
    """Rows of one kind, now and then of two, with something changed in all or in some of them."""
    kinds = [rng.choice(ROWS)] * 12 if rng.random() < 0.9 else rng.choices(ROWS, k=12)
    rows = [filled(row, number) for number, row in enumerate(kinds)]
    state = rng.getrandbits(32)
    chosen = rng.choice([rows, rows, rows[:1], rows[5:7]])
    for row in chosen if rng.random() < 0.8 else []:
        same = random.Random(state)
        for _ in range(same.choice([1, 1, 2])):
            changed(row, same)
    if rng.random() < 0.1:
        rows[rng.randrange(12)] = rng.choice(TYPES)
    return rows[: rng.choice([12, 12, 12, 12, 1, 2, 0])]


def table(rows: list[Any], delimiter: str) -> str:
    names = list(dict.fromkeys(str(name) for row in rows if isinstance(row, dict) for name in row))
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(names)
    writer.writerows([row.get(name) for name in names] for row in rows if isinstance(row, dict))
    return text.getvalue()


def parquet(rows: list[Any], rng: random.Random) -> bytes:
    """A Parquet file, now and then with types that JSON does not have; empty where Arrow cannot hold the rows."""
    import pyarrow
    from pyarrow import parquet as writer

    rows = [row for row in rows if isinstance(row, dict)]
    if rng.random() < 0.3:
        value, name = rng.choice(PYTHON), rng.choice([*(rows[0] if rows else ()), "more"])
        rows = [{**row, name: value} for row in rows]
    buffer = io.BytesIO()
    try:
        made = pyarrow.Table.from_pylist(rows)
        if rng.random() < 0.1:
            made = pyarrow.table([*made.columns, *made.columns[:1]], [*made.column_names, *made.column_names[:1]])
        if rng.random() < 0.1:
            made = made.append_column(
                "map", pyarrow.array([[("a", 1), ("a", 2)]] * len(made), pyarrow.map_("str", "int8"))
            )
        writer.write_table(made, buffer, compression=rng.choice(["snappy", "gzip", "none"]))
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return b""
    return buffer.getvalue()


def data_file(path: Path, rng: random.Random) -> Path:
    """A data file; its name mostly says what it is."""
    rows, kind = rows_of(rng), rng.choice(SUFFIXES)
    if kind == ".parquet":
        raw = parquet(rows, rng)
    else:
        plain = rng.random() < 0.5
        if kind in (".jsonl", ".ndjson"):
            text = "".join(json.dumps(row, ensure_ascii=plain) + "\n" for row in rows)
        elif kind == ".json":
            text = json.dumps(
                rows if rng.random() < 0.7 else {"data": rows, "more": rng.choice(TYPES)}, ensure_ascii=plain
            )
        else:
            text = table(rows, rng.choice(["\t" if kind == ".tsv" else ","] * 4 + [";"]))
        if rng.random() < 0.1:
            text = text.replace("\n", rng.choice(["\r\n", "\r", "\u2028", "\n\n", ",\n", "\x00\n"]))
        raw = encoded(text, rng)
    for _ in range(rng.choice([1, 1, 3])):
        raw = torn(raw, rng)
    if rng.random() < 0.05:
        raw = rng.choice(PACKED)(raw)
    file = path.with_suffix(kind if rng.random() < 0.9 else rng.choice([*SUFFIXES, *WRONG]))
    file.write_bytes(raw)
    return file


def encoded(text: str, rng: random.Random) -> bytes:
    """The text in UTF-8, now and then in another encoding."""
    name = rng.choice(["utf-8"] * 5 + [rng.choice(ENCODINGS)])
    return text.encode(name, "surrogatepass" if name.startswith("utf") else "ignore")


@seeds(25, first=400_000)
def test_any_data_file(sound, tmp_path, cases):
    pytest.importorskip("pyarrow")
    short = ("samples.num=0", "trainer.max_steps=1", f"output_root={tmp_path / 'outputs'}")

    def case(seed: int, rng: random.Random) -> None:
        folder = tmp_path / f"data {seed}"
        folder.mkdir()
        named = rng.choice(["rows", "rows", "rows", "train"])
        rows, other = data_file(folder / named, rng), data_file(tmp_path / "other", rng)
        typed = rng.choice([[], [], [rng.choice(OPTIONS)], rng.sample(OPTIONS, 2)])
        if rng.random() < 0.15:
            typed += [f"data.columns.{rng.choice([n for n in NAMES if n])}={rng.choice([*NAMES[1:], 'null'])}"]
        if rng.random() < 0.15:
            typed += [f"data.encoding={rng.choice(CODECS)!r}"]
        path = rng.choice([rows, rows, rows, folder, folder / "*"])
        typed = [part.replace("OTHER", f"'{other}'") for option in typed for part in option.split(" data.")[:1]]
        sound("data=file", f"data.path='{path}'", *typed, *short, f"hydra.run.dir='{tmp_path / 'runs' / str(seed)}'")
        shutil.rmtree(folder)
        other.unlink()

    run_all(cases, case)
