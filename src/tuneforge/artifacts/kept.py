"""Reading back what runs and sweeps keep: a file that is cut off, or another program's, is named in the error.

One function reads each file and looks at its shape, so that what follows can rely on every key it needs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.yaml_files import read_yaml

NUMBER = (int, float)

Shape = Any
"""A type or several; a list of one shape; or a mapping of key -> shape: `*` is any key, and `key?` may be missing."""

_SAMPLE: Shape = {"prompt": str, "wanted": str, "answer": str}

PAGE: Shape = {
    **dict.fromkeys(("status", "started", "written", "identity", "base_model", "method"), str),
    "choices": dict,
    "overrides": [str],
    "data": {"train_documents": int, "train_rows": int},
    "parameters": {"*": int},
    "settled": {"num_steps": int, "documents_per_step": NUMBER, "label_tokens_per_step": NUMBER},
    "hardware": {"profile": {"name": str}, "present": {"device": str, "memory_bytes": int}},
    "metrics": {"before": {"*": NUMBER}, "after": {"*": NUMBER}},
    "samples": {"before": [_SAMPLE], "after": [_SAMPLE]},
    "guards": {"*": {"events": [{"step": NUMBER, "did": str, "message": str}]}},
    "gates": [{"name": str, "passed": (bool, type(None))}],
    "versions": {"*": str},
}
"""run.json: the keys that its page needs."""

TYPED: Shape = {
    "choices": {"*": str},
    "overrides": [str],
    "config_dirs?": [str],
    "from_environment?": dict,
    "pickers?": {"*": str},
    "plugins": [{"name": str, "version": str, "sha256": str}],
    "versions": {"*": str},
}
"""run.json: the keys that its config is composed from again."""

RECORD: Shape = {
    **PAGE,
    **TYPED,
    "data": {"sha256": str, "digests": {"*": str}, "train_documents": int, "train_rows": int},
    "settled": dict.fromkeys(("num_steps", "per_device", "accumulate", "world_size"), int),
}
"""run.json: the keys that it takes to resume the run."""

MEASURED: Shape = {"status": str, "metrics": {"after": {"*": NUMBER}}}
"""run.json: what a trial measured."""

REFUSED: Shape = {key: PAGE[key] for key in ("guards", "gates")}
"""run.json: why a check refused the result."""

CONFIG: Shape = {"model": dict, "data": dict, "method": dict, "trainer": dict, "callbacks": dict, "output_root": str}
"""config.yaml: the nodes that are looked at before the whole is checked by the schema."""

_ORIGIN: Shape = {"where": str, "expression": str, "written?": str}
_ORIGIN["replaced?"] = [_ORIGIN]
PROVENANCE: Shape = {"*": _ORIGIN}


def read_record(root: Path, shape: Shape = RECORD) -> dict[str, Any]:
    """run.json of a run folder, which must have the keys of `shape`: those that its reader needs.

    Raises:
        TuneforgeError: it is missing or damaged.
    """
    return read_object(root / "run.json", shape, "record of a run")


def read_config(root: Path, shape: Shape = CONFIG) -> dict[str, Any]:
    """config.yaml of a run folder.

    Raises:
        TuneforgeError: it is missing or damaged.
    """
    return read_object(root / "config.yaml", shape, "config of a run")


def read_provenance(root: Path) -> dict[str, Any]:
    """provenance.json of a run folder.

    Raises:
        TuneforgeError: it is missing or damaged.
    """
    return read_object(root / "provenance.json", PROVENANCE, "provenance of a config")


def read_object(path: Path, shape: Shape, what: str) -> dict[str, Any]:
    """A JSON or YAML file that holds one object of this shape; `what` it is, for its error.

    Raises:
        TuneforgeError: it is missing, cut off, or something else; the file is named.
    """
    text = _text(path)
    try:
        value: Any = read_yaml(text, path.name) if path.suffix == ".yaml" else json.loads(text)
    except (ValueError, TuneforgeError, RecursionError) as error:
        raise damaged(path, f"is no {what}: {' '.join(str(error).split())[:120]}") from error
    wrong = mismatch(value, shape)
    if wrong:
        raise damaged(path, f"is no {what}: {wrong}")
    found: dict[str, Any] = value
    return found


def read_lines(path: Path, shape: Shape) -> list[dict[str, Any]]:
    """The objects of a file of one JSON object a line; none where there is no file, or an empty one.

    A last line that a kill or a full disk cut short is left out, which is told.

    Raises:
        TuneforgeError: another line is damaged.
    """
    if not path.is_file():
        return []
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise damaged(path, f"cannot be read: {error.strerror}") from error
    found = []
    for number, line in enumerate([*lines, *([last] if last else [])], 1):
        try:
            value = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            if number > len(lines):
                warn(Problem("cut-line", f"{path}: its last line (line {number}) was cut short and is left out"))
                break
            what = "no UTF-8" if isinstance(error, UnicodeDecodeError) else "no JSON"
            raise damaged(path, f"line {number} is {what}: {line.decode(errors='replace')[:60]!r}") from error
        wrong = mismatch(value, shape)
        if wrong:
            raise damaged(path, f"line {number}: {wrong}")
        found.append(value)
    return found


def mismatch(value: Any, shape: Shape, at: str = "") -> str:
    """Where a value has not the shape, and what is wrong there; "" where it has."""
    if isinstance(shape, Mapping):
        if not isinstance(value, Mapping):
            return f"{at or 'it'} is {_kind(value)} where an object belongs"
        missing = [key for key in shape if key != "*" and not key.endswith("?") and key not in value]
        if missing:
            return f"{at + ' ' if at else ''}has no {missing[0]!r}"
        known = {key.removesuffix("?"): of for key, of in shape.items()}
        inner = {key: known.get(key, known.get("*")) for key in value if key in known or "*" in known}
        found = (mismatch(value[key], of, f"{at}.{key}" if at else str(key)) for key, of in inner.items())
        return next(filter(None, found), "")
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{at} is {_kind(value)} where a list belongs"
        return next(filter(None, (mismatch(one, shape[0], f"{at}[{i}]") for i, one in enumerate(value))), "")
    right = isinstance(value, shape) and (not isinstance(value, bool) or shape is bool or bool in _types(shape))
    return "" if right else f"{at} is {_kind(value)}"


def damaged(path: Path, what: str) -> TuneforgeError:
    """The error of a file that cannot be used."""
    return TuneforgeError(
        "damaged-file",
        f"{path} {what}",
        fix="put it back from a copy, or name another run; nothing was changed",
    )


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise damaged(path, "is missing") from error
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no UTF-8"
        raise damaged(path, f"cannot be read: {why}") from error
    if not text.strip():
        raise damaged(path, "is empty")
    return text


def _types(shape: Any) -> tuple[type, ...]:
    return shape if isinstance(shape, tuple) else (shape,)


def _kind(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."
