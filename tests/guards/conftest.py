"""A run of a few seconds: forty short rows for the bundled model, eight at a step, an evaluation every four steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Ran

FAST = (
    *("data=file", "data.packing=false", "data.max_length=64", "data.split.by=row", "logger=none", "samples.num=0"),
    *("batch.effective=8", "batch.per_device=4", "trainer.val_check_interval=4", "optim.lr=1e-3"),
    *("scheduler=constant", "scheduler.warmup_ratio=0"),
)


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """Questions with answers of three random digits: nothing but learning them by heart helps."""
    digits = torch.randint(0, 10, (count, 3), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [{"prompt": f"number {seed * 1000 + i}", "completion": "".join(map(str, d))} for i, d in enumerate(digits)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def fast(command: Callable[..., Ran], tmp_path: Path) -> Callable[..., Ran]:
    """Run that, with overrides; `steps` optimizer steps."""

    def call(*overrides: str, steps: int = 12, **options: Any) -> Ran:
        rows = write_rows(tmp_path / "rows.jsonl", 40)
        return command(*FAST, f"data.path={rows}", f"trainer.max_steps={steps}", *overrides, **options)

    return call


def found(ran: Ran, guard: str) -> list[tuple[int, str, str]]:
    """Step, code and what was done of each finding of a guard."""
    return [(e["step"], e["code"], e["did"]) for e in ran.record["guards"][guard]["events"]]


def adapter(ran: Ran) -> dict[str, torch.Tensor]:
    """The exported weights."""
    from safetensors.torch import load_file

    return load_file(ran.folder / "adapter" / "adapter_model.safetensors")


def evals(ran: Ran) -> dict[int, float]:
    """Step -> eval loss."""
    return {m["step"]: m["eval/loss"] for m in ran.metrics if "eval/loss" in m}
