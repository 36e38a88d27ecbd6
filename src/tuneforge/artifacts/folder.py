"""The run folder, and writing into it so that a reader never sees half a file."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuneforge.errors import EXIT_OF

STOPPED = "stopped the run"
"""What run.json says a guard did at a finding that ended the run."""


class RunFolder:
    """Paths of one run's files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def checkpoints(self) -> Path:
        """Resumable checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.root / "metrics.jsonl"

    @property
    def record(self) -> Path:
        """The registry record of the run."""
        return self.root / "run.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    def result(self, is_adapter: bool) -> Path:
        """Where `from_pretrained` finds the result."""
        return self.root / ("adapter" if is_adapter else "model")


def write_text(path: Path, text: str) -> None:
    """Write atomically: a temporary file in the same folder, synced, then renamed over the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_exit(record: Path, code: int) -> None:
    """Correct a record: of a process that cannot write its own end, or whose end followed from another's."""
    with suppress(FileNotFoundError):
        facts = read_json(record)
        if facts["exit"] != code:
            status = "interrupted" if code in EXIT_OF.values() else "failed"
            write_json(record, {**facts, "status": status, "exit": code})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, none where there is no file; a last line cut short by a kill is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found
