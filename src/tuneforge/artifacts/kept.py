"""Reading back what runs and sweeps keep: a file that is cut off, or another program's, is named in the error.

One function reads each file and looks at its shape, so that what follows can rely on every key it needs.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.yaml_files import read_yaml

NUMBER = (int, float)

Shape = Any
"""A type or several; a list of one shape; a mapping of key -> shape, `*` being any key and `x?` one that may be
missing; or a function that says what is wrong with a value."""


def _moment(value: Any) -> str:
    try:
        return "" if datetime.fromisoformat(value).tzinfo else "has no time zone"
    except (TypeError, ValueError):
        return "is no date and time"


_SAMPLE: Shape = {"prompt": str, "wanted": str, "answer": str}

PAGE: Shape = {
    **dict.fromkeys(("status", "identity", "base_model", "method"), str),
    **dict.fromkeys(("started", "written"), _moment),
    "exit": (int, type(None)),
    "git": (str, type(None)),
    "choices": {**dict.fromkeys(("task_recipe", "data", "hardware"), str), "*": (str, list)},
    "overrides": [str],
    "config_dirs?": [str],
    "data": {"train_documents": int, "train_rows": int},
    "parameters": {"*": int},
    "settled": {"num_steps": int, "documents_per_step": NUMBER, "label_tokens_per_step": NUMBER},
    "hardware": {
        "profile": {"name": str, "kind": str, "vram_gb": (*NUMBER, type(None))},
        "present": {"device": str, "name": str, "memory_bytes": int},
    },
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
    "choices": {**PAGE["choices"], "strategy": str},
    "data": {
        "sha256": str,
        "digests": {"*": str},
        "train_documents": int,
        "train_rows": int,
        "tokenised_by?": {"*": str},
    },
    "settled": dict.fromkeys(("num_steps", "per_device", "accumulate", "world_size", "rows_per_step?"), int),
    "classes": {"before": (dict, type(None)), "after": (dict, type(None))},
    "trial?": (dict, type(None)),
}
"""run.json: the keys that it takes to resume the run."""

MEASURED: Shape = {"status": str, "metrics": {"after": {"*": NUMBER}}}
"""run.json: what a trial measured."""

COMPARED: Shape = {
    "versions": {"*": str},
    "data": {"sha256": str},
    "git": (str, type(None)),
    "metrics": {"after": {"*": NUMBER}},
}
"""run.json: what two runs are compared by, beside their configs."""

REFUSED: Shape = {key: PAGE[key] for key in ("guards", "gates")}
"""run.json: why a check refused the result."""

METRICS: Shape = {"*": (*NUMBER, type(None))}
"""A line of metrics.jsonl."""

CONFIG: Shape = {
    **dict.fromkeys(("model", "data", "method", "callbacks"), dict),
    "trainer": {"max_steps": (int, str, type(None))},
    "output_root": str,
}
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
    wrong = mismatch(value, shape) or _odd_key(value)
    if wrong:
        raise damaged(path, f"is no {what}: {wrong}")
    found: dict[str, Any] = value
    return found


def _odd_key(value: Any) -> str:
    """A key that is no text, which YAML can have; "" where there is none."""
    if isinstance(value, list):
        return next(filter(None, map(_odd_key, value)), "")
    if not isinstance(value, Mapping):
        return ""
    odd = [key for key in value if not isinstance(key, str)]
    return f"the key {odd[0]!r} is no text" if odd else next(filter(None, map(_odd_key, value.values())), "")


def read_lines(path: Path, shape: Shape) -> list[dict[str, Any]]:
    """The objects of a file of one JSON object a line; none where there is no file, or an empty one.

    A last line that is cut off, by a kill or a full disk, is left out with a warning.

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
    if callable(shape) and not isinstance(shape, type):
        wrong = shape(value)
        return f"{at} {wrong}: {_kind(value)}" if wrong else ""
    if shape is object:
        return ""
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
