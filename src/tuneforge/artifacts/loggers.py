"""Loggers: metrics.jsonl, which every run has, and TensorBoard."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from tuneforge.artifacts.folder import read_metrics, write_text


class MetricsFile(Logger):
    """metrics.jsonl: one object a logged step, flushed as it is written."""

    def __init__(self, path: Path, keep_to_step: int) -> None:
        """Go on after `keep_to_step`: lines of later steps, written before an interruption, are cut."""
        super().__init__()
        self.path = path
        self._cut(keep_to_step)

    @property
    def name(self) -> str:
        """Lightning's label of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """One file a run."""
        return ""

    @rank_zero_only
    def _cut(self, keep_to_step: int) -> None:
        if self.path.exists():
            kept = [m for m in read_metrics(self.path) if m["step"] <= keep_to_step]
            write_text(self.path, "".join(json.dumps(m) + "\n" for m in kept))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line; the folder is made by the first, so that a run that cannot start leaves none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": int(step or 0), **{k: float(v) for k, v in metrics.items()}}) + "\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml lies beside the file."""


def tensorboard(folder: Path, /) -> TensorBoardLogger:
    """Event files under `tensorboard/` of the run folder."""
    return TensorBoardLogger(save_dir=folder, name="tensorboard", version="")
