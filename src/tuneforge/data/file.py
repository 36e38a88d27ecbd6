"""Rows from local files: JSONL, JSON, CSV, TSV or Parquet; one file, a folder or a glob. All rows or an error."""

import csv
import glob
import io
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneforge.bounded import limited, spare_memory
from tuneforge.console import say, warn
from tuneforge.data.encoding import UTF8, decode
from tuneforge.data.folder_splits import PACKED, is_split, splits_of, warn_unread
from tuneforge.data.rows import GROUP_COLUMNS, Row, first_few, kind_of, parse_json, twice
from tuneforge.errors import Problem, TuneforgeError, near

_SHOWN = 3
"""Broken lines that a message spells out; the rest are counted."""
_NO_ROWS = "write at least one row, or name another file"
ROW_BYTES = 200
"""Of memory that a row takes at least."""
_FIELD_LIMIT = 2**31 - 1
"""Characters in one CSV field. Python stops at 131072, less than a long document; more would overflow a C long."""


def file(*, path: str, encoding: str = UTF8) -> list[Row]:
    """Every row of one file, of the data files in a folder, or of the files that a glob matches, in sorted order."""
    try:
        found = _find(path)
    except OSError as error:
        raise _error(
            "unreadable-file", f"cannot look at {path}: {error.strerror}", "check the path and its permissions"
        ) from error
    base = Path(os.path.commonpath([one.parent for one in found]))
    splits = splits_of(found, base) if len(found) > 1 else None
    several = len(found) > 1

    def rows_of(one: Path) -> list[Row]:
        return _rows(one, one.relative_to(base).as_posix(), encoding, several)

    if splits is None:
        return [row for one in found for row in rows_of(one)]
    say(f"splits of {base}: {splits.describe(base)}")
    if splits.test:
        fix = f"to evaluate on it: data.split.eval_path={splits.test[0]}"
        message = f"the test split is left out: {len(splits.test)} of {len(found)} files"
        warn(Problem("test-split-left-out", message, "data.path", fix=fix))
    rows: list[Row] = []
    for one in found:
        if one not in splits.test:
            held = one in splits.validation if splits.validation else None
            rows += [replace(row, held_out=held) for row in rows_of(one)]
    return rows


def _rows(path: Path, name: str, encoding: str, several: bool) -> list[Row]:
    raw = _bytes(path, name)
    if path.suffix.lower() == ".parquet":
        return _parquet(raw, name)
    return _TEXT_READERS[path.suffix.lower()](_text(raw, name, encoding, several), name)


def _error(code: str, message: str, fix: str) -> TuneforgeError:
    return TuneforgeError(code, message, path="data.path", fix=fix)


# Which files


def _find(path: str | None) -> list[Path]:
    if not path or not path.strip():
        shown = "null" if path is None else "empty"
        raise _error(
            "no-data-path", f"data=file needs a file, a folder or a glob, and this is {shown}", "data.path=rows.jsonl"
        )
    if "://" in path:
        raise _error("not-local", f"{path} is an address; data=file reads local files", "download it and give the file")
    target = Path(os.path.expanduser(path))
    if target.is_dir():
        return _in_folder(target)
    if target.exists():
        return [_known(target)]
    if any(character in path for character in "*?["):
        return _matching(target)
    raise _missing(target)


def _in_folder(folder: Path) -> list[Path]:
    # A leading dot is an editor's or macOS's own copy ("._rows.jsonl"), never a shard.
    visible = [one for one in folder.iterdir() if not one.name.startswith(".")]
    found = [one for one in visible if one.suffix.lower() in _READERS and one.is_file()]
    below = [one for part in visible if part.is_dir() and is_split(part) for one in part.rglob("*")]
    found += [one for one in below if one.suffix.lower() in _READERS and one.is_file() and not _is_hidden(one, folder)]
    if found:
        warn_unread(folder, visible, found, _READERS)
        return sorted(found)
    here = ", ".join(sorted(one.name for one in visible)[:8]) or "nothing"
    deeper = f"; for files further down: data.path='{folder}/**/*{_deeper(folder)}'" if _deeper(folder) else ""
    raise _error(
        "no-data-file",
        f"no data file in the folder {folder.resolve()}, which holds: {here}",
        f"{_known_list()}{deeper}",
    )


def _is_hidden(path: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(base).parts)


def _deeper(folder: Path) -> str:
    """The suffix of some data file further down."""
    found = (one.suffix for one in sorted(folder.rglob("*")) if one.suffix.lower() in _READERS)
    return next(found, "")


def _matching(pattern: Path) -> list[Path]:
    found = sorted(one for one in map(Path, glob.glob(str(pattern), recursive=True)) if one.is_file())
    if not found:
        raise _error(
            "glob-matches-nothing",
            f"no file matches the glob {pattern} (looked from {Path.cwd()})",
            "quote it, so that the shell leaves it alone: 'data.path=data/*.jsonl'",
        )
    return [_known(one) for one in found]


def _known(path: Path) -> Path:
    extension = path.suffix.lower()
    if extension in _READERS:
        return path
    what = f"ends in '{extension}'" if extension else "has no extension"
    fix = "unpack it first; " if extension in PACKED else ""
    raise _error("unknown-file-type", f"{path} {what}, so its format is unknown", f"{fix}{_known_list()}")


def _known_list() -> str:
    return f"known data files: {' '.join(sorted(_READERS))}"


def _missing(path: Path) -> TuneforgeError:
    if path.is_symlink():
        return _error("no-such-file", f"{path} is a link to {path.readlink()}, which does not exist", "mend the link")
    folder = path.parent
    if not folder.is_dir():
        exists = next(one for one in folder.resolve().parents if one.is_dir())
        return _error(
            "no-such-file", f"no such folder: {folder.resolve()} (it exists up to {exists})", "check the path"
        )
    names = sorted(one.name for one in folder.iterdir())
    close = near(path.name, names)
    data = [name for name in names if Path(name).suffix.lower() in _READERS]
    hint = f"did you mean {' or '.join(repr(one) for one in close)}? " if close else ""
    holds = f"data files there: {', '.join(data[:8]) or 'none'}{' ...' if len(data) > 8 else ''}"
    return _error("no-such-file", f"no such file: {path.name} (looked in {folder.resolve()})", f"{hint}{holds}")


# From bytes to text


def _bytes(path: Path, name: str) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise _error(
            "unreadable-file", f"cannot read {name}: {error.strerror}", f"check its permissions: ls -l {path}"
        ) from error
    if not raw:
        raise _error("no-rows", f"{name} is empty", _NO_ROWS)
    return raw


def _text(raw: bytes, name: str, encoding: str, several: bool) -> str:
    text = decode(raw, name, encoding, several)
    if not text.strip():
        raise _error("no-rows", f"{name} is empty: it holds blank lines only", _NO_ROWS)
    return text


# From text to rows


def _row(fields: Mapping[str, Any], origin: str) -> Row:
    return Row(fields, origin, _group(fields))


def _group(fields: Mapping[str, Any]) -> str:
    for column in GROUP_COLUMNS:
        value = fields.get(column)
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas turns a column of integers with a gap into floats
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
    return ""


def _why(error: ValueError | RecursionError) -> str:
    """What is wrong with some JSON; besides its syntax that is a doubled key, too many digits or too deep nesting."""
    if isinstance(error, json.JSONDecodeError):
        excerpt = error.doc[max(0, error.pos - 20) : error.pos + 20]
        return f"column {error.colno}: {error.msg}, near {excerpt!r}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _jsonl(text: str, name: str) -> list[Row]:
    rows: list[Row] = []
    broken: list[str] = []
    # Not splitlines(): that also cuts at U+2028 and others, which JSON allows inside a string.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            broken.append(f"line {number}, {_why(error)}")
            continue
        if isinstance(value, dict):
            rows.append(_row(value, f"{name}:{number}"))
        else:
            broken.append(f"line {number} is {kind_of(value)}, not an object")
    if broken:
        count = f"{len(broken)} broken line{'s' if len(broken) > 1 else ''}"
        raise _error("broken-rows", f"{name} has {count}:{first_few(broken, _SHOWN)}", _jsonl_fix(text))
    return rows


def _jsonl_fix(text: str) -> str:
    try:
        parse_json(text)
    except (ValueError, RecursionError):
        return "wanted on every line: one JSON object with the row's columns"
    return "the file as a whole is one JSON value: rename it to .json"


def _json(text: str, name: str) -> list[Row]:
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise _json_error(error, text, name) from None
    if isinstance(value, dict):
        value = _only_list(value, name)
    if not isinstance(value, list):
        raise _error("broken-rows", f"{name} is {kind_of(value)}", "wanted: a list of objects, one for each row")
    if not value:
        raise _error("no-rows", f"{name} is an empty list", _NO_ROWS)
    broken = [f"{name}[{i}] is {kind_of(one)}" for i, one in enumerate(value) if not isinstance(one, dict)]
    if broken:
        fix = "wanted: a list of objects, one for each row"
        raise _error(
            "broken-rows",
            f"{len(broken)} of {len(value)} rows in {name} are not objects:{first_few(broken, _SHOWN)}",
            fix,
        )
    return [_row(one, f"{name}[{i}]") for i, one in enumerate(value)]


def _json_error(error: ValueError | RecursionError, text: str, name: str) -> TuneforgeError:
    if not isinstance(error, json.JSONDecodeError):
        return _error("broken-file", f"{name} is broken: {_why(error)}", "correct the file")
    if error.msg == "Extra data" and _is_object(text.strip().split("\n", 1)[0]):
        return _error("broken-file", f"{name} is JSONL (one object on each line), not JSON", "rename it to .jsonl")
    end = text.rstrip()
    where = f"line {error.lineno}, {_why(error)}"
    if error.pos >= len(end) or end[-1] not in "]}":
        return _error(
            "broken-file", f"{name} is cut off: it ends inside a value ({where})", "write or download it again"
        )
    return _error("broken-file", f"{name} is broken: {where}", "correct the file")


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text), dict)
    except (ValueError, RecursionError):
        return False


def _only_list(value: Mapping[str, Any], name: str) -> Any:
    """The rows of {"data": [...]}: the one value that is a list of objects, so that no second list is dropped."""
    lists = [key for key, one in value.items() if isinstance(one, list) and one and isinstance(one[0], dict)]
    if len(lists) == 1:
        return value[lists[0]]
    found = f"{len(lists)} of them ({', '.join(lists)})" if lists else f"none (keys: {', '.join(value) or 'none'})"
    fix = "write a list of objects, one for each row (pandas: orient='records'); if it is one row, rename it to .jsonl"
    raise _error("broken-rows", f"{name} is an object; wanted in it: exactly one list of objects; found: {found}", fix)


def _csv(text: str, name: str) -> list[Row]:
    return _table(text, name, ",")


def _tsv(text: str, name: str) -> list[Row]:
    return _table(text, name, "\t")


def _table(text: str, name: str, delimiter: str) -> list[Row]:
    (_, header), *records = _records(text, name, delimiter)
    if len(set(header)) < len(header):
        raise _error(
            "broken-header",
            f"the header of {name} names columns twice: {twice(header)}",
            "give each column its own name",
        )
    other = next((mark for mark in ",;\t|" if len(header) == 1 and mark in header[0]), "")
    if other:
        what = f"one column, {header[0]!r}: it looks separated by {other!r}, not {delimiter!r}"
        raise _error("broken-header", f"the header of {name} is {what}", "separate by commas in .csv, by tabs in .tsv")
    if not records:
        raise _error("no-rows", f"{name} has a header and no rows", _NO_ROWS)
    wrong = [f"line {line}: {len(one)} fields" for line, one in records if len(one) != len(header)]
    if wrong:
        count = f"{len(wrong)} row{'s' if len(wrong) > 1 else ''} whose fields are not the header's {len(header)}"
        fix = f'put a field that holds {delimiter!r} or a line break in quotes: "like, this"'
        raise _error("broken-rows", f"{name} has {count}:{first_few(wrong, _SHOWN)}", fix)
    return [_row(dict(zip(header, one, strict=True)), f"{name}:{line}") for line, one in records]


def _records(text: str, name: str, delimiter: str) -> list[tuple[int, list[str]]]:
    """Each record with the line on which it starts (a quoted field may span lines); blank lines are left out."""
    csv.field_size_limit(_FIELD_LIMIT)
    # strict: without it an unclosed quote swallows the rest of the file into one field, in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for fields in reader:
            if fields:
                records.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        fix = 'close each quote, and double a quote inside a quoted field: "she said ""yes"""'
        raise _error("broken-file", f"{name} is broken in the row that starts on line {start}: {error}", fix) from error
    return records


def _parquet(raw: bytes, name: str) -> list[Row]:
    """Its rows are counted from 1 in their origin: `name row 3`."""
    # Imported here: it is optional, and time that no other format should pay.
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise _error(
            "needs-pyarrow", f"{name} is Parquet, which needs pyarrow ({error})", "pip install 'tuneforge[data]'"
        ) from error
    try:
        file = parquet.ParquetFile(arrow.BufferReader(raw))
        columns: list[str] = file.schema_arrow.names
        if len(set(columns)) < len(columns):
            raise _error(
                "broken-header",
                f"{name} has columns of the same name: {twice(columns)}",
                "give each column its own name",
            )
        # Parquet is compressed: a few kilobytes can stand for more than any memory holds.
        spare = spare_memory()
        if file.metadata.num_rows * ROW_BYTES > spare:
            raise MemoryError
        with limited(spare):
            records: list[dict[str, Any]] = file.read().to_pylist()
    except MemoryError as error:
        raise _error(
            "file-too-large",
            f"{name} takes {len(raw):,} bytes on the disk, and more than this machine's memory when it is unpacked",
            "split it, or write it without the columns that training does not need",
        ) from error
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _error(
            "broken-file", f"{name} is not a readable Parquet file: {error}", "write or download it again"
        ) from error
    if not records:
        raise _error("no-rows", f"{name} has columns and no rows", _NO_ROWS)
    return [_row(one, f"{name} row {number}") for number, one in enumerate(records, 1)]


_TEXT_READERS: dict[str, Callable[[str, str], list[Row]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
}
_READERS = (*_TEXT_READERS, ".parquet")
