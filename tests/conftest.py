"""Shared fixtures: runs in this process, tiny models of several architectures, and libraries kept quiet."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"


@dataclass
class Ran:
    """A finished command."""

    code: int
    folder: Path
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.folder / "run.json").read_text())

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def losses(self) -> list[float]:
        return [m["train/loss"] for m in self.metrics if "train/loss" in m]


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Run the command line in this process; each call gets a run folder of its own."""
    from tuneforge.cli import run

    calls = 0

    def call(*arguments: str, folder: Path | None = None) -> Ran:
        nonlocal calls
        calls += 1
        where = folder or tmp_path / f"run{calls}"
        capfd.readouterr()
        code = run([*arguments, f"output_root={tmp_path / 'outputs'}", f"hydra.run.dir={where}"])
        captured = capfd.readouterr()
        return Ran(code, where, captured.out, captured.err)

    return call


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; returns what it said."""
    from tuneforge.cli import run

    def call(*arguments: str) -> str:
        capfd.readouterr()
        code = run(list(arguments))
        captured = capfd.readouterr()
        assert code == 2, captured
        assert "Traceback" not in captured.err, captured.err
        assert captured.err.startswith("error: "), captured.err
        return captured.err

    return call


# A short run: a few steps on a few rows.
SHORT = ("trainer.max_steps=4", "data.max_rows=64", "data.split.max_eval_rows=16", "samples.num=1", "batch.effective=8")
