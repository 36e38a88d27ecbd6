"""A run without training: all that a run writes, by the writers that a run uses."""

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from tuneforge import resume
from tuneforge.artifacts import owned, whole
from tuneforge.artifacts.folder import append_text, make_folder, write_json, write_text

ROWS: Any = SimpleNamespace(digests={})
"""Rows that were read from no file."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(root: Path) -> dict[str, str]:
    """Path -> hash of every file below a folder, and where each link points."""
    found = {}
    for at, folders, names in os.walk(root):
        for path in (Path(at) / n for n in (*names, *folders)):
            if path.is_symlink():
                found[str(path.relative_to(root))] = f"-> {path.readlink()}"
            elif path.is_file():
                found[str(path.relative_to(root))] = digest(path)
    return found


def checkpoint(root: Path, step: int) -> None:
    def fill(folder):
        (folder / "state.pt").write_text(f"state of {step}")
        return [folder / "state.pt"]

    whole.write(whole.path_of(root / "checkpoints", step), fill)


def record_of(composed) -> dict[str, Any]:
    """run.json of a run that failed."""
    numbers = ("num_steps", "per_device", "accumulate", "world_size", "documents_per_step", "label_tokens_per_step")
    nothing: Any = {"before": {}, "after": {}}
    return {
        "identity": resume.identity(composed.tree),
        "status": "failed",
        "exit": 1,
        "trial": None,
        "git": None,
        **dict.fromkeys(("started", "written"), "2026-11-28T10:00:00+00:00"),
        "choices": composed.choices,
        "overrides": ["optim.lr=1e-3"],
        "config_dirs": [],
        "plugins": [],
        "base_model": "bundled:tiny",
        "method": "lora",
        "data": {"sha256": "0" * 64, "digests": {}, "train_documents": 2, "train_rows": 1},
        "parameters": {},
        "settled": dict.fromkeys(numbers, 1),
        "versions": {},
        "guards": {},
        "gates": [],
        "metrics": nothing,
        "samples": {"before": [], "after": []},
        "classes": {"before": None, "after": None},
        "hardware": {
            "profile": {"name": "auto", "kind": "cpu", "vram_gb": None},
            "present": {"device": "cpu", "name": "cpu", "memory_bytes": 2**30},
        },
    }


def stand_in(composed, place, steps: int = 4) -> None:
    """All that a run writes, by the writers that a run uses, without training."""
    root = place.folder.root
    for later in whole.found(root / "checkpoints"):
        if whole.step_of(later) > max(place.step, 0):
            whole.remove(later)
    append_text(root / "metrics.jsonl", '{"step": 0}\n')
    write_text(root / "config.yaml", yaml.safe_dump(composed.tree))
    write_json(root / "provenance.json", {})
    write_json(root / "run.json", record_of(composed))
    make_folder(root / "tensorboard")
    for step in range(2, steps + 1, 2):
        if step > place.step:
            checkpoint(root, step)
    temporary = owned.make_temporary(root / "adapter")
    (temporary / "adapter_config.json").write_text("{}")
    (temporary / "inner").mkdir()
    (temporary / "inner" / "more.safetensors").write_text("weights")
    owned.put(temporary, root / "adapter")
    write_text(root / "report.html", "<html>")
