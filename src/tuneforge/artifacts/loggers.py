"""Loggers: metrics.jsonl, which every run has, TensorBoard with a dashboard, and a table for spreadsheets."""

import csv
import io
import json
import os
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from tuneforge.artifacts.folder import RunFolder, append_text, make_folder, read_metrics, write_text
from tuneforge.console import warn

FINAL = "final/"
"""In front of what was measured of the result: of the best checkpoint, which is not always the last step."""

LAYOUT = {
    "learning": {
        "loss": ["train/loss", "eval/loss"],
        "eval perplexity": ["eval/perplexity"],
        "eval loss above train loss": ["overfit_guard/gap"],
        "gradient norm": ["train/grad_norm"],
        "learning rate": ["train/lr"],
        "epoch": ["epoch"],
    },
    "machine": {
        "tokens a second": ["train/tokens_per_s"],
        "GPU utilisation, %": ["waste_guard/gpu_utilisation"],
        "GPU memory, %": ["waste_guard/gpu_memory"],
        "share of time waiting for rows, evaluating": ["waste_guard/data_wait", "waste_guard/eval_time"],
    },
    "guards": {
        "skipped steps": ["nan_guard/skipped"],
        "spikes": ["spike_guard/spikes"],
        "loss above its median, robust deviations": ["spike_guard/loss_score"],
        "share of trained tensors that moved": ["underfit_guard/moved"],
    },
}
"""The dashboard under "Custom Scalars": category -> title -> keys of one chart. Under "Text" are the config, the
samples before and after, the quality gates and what guards found."""


class RunLogger(Logger, ABC):
    """A logger that is told how the run ended. Only the first process has any."""

    @abstractmethod
    def end(self, status: str, chosen: Mapping[str, Any], final: Mapping[str, float], step: int) -> None:
        """The last call, whatever ended the run.

        Args:
            status: of run.json: done, refused, failed or interrupted.
            chosen: what sets this run apart from others: options, and keys the user set.
            final: what was measured of the result; empty where the run did not come that far.
            step: optimizer steps done.
        """

    def log_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Show texts under their titles; a logger without a place for text shows none.

        Args:
            texts: title -> Markdown.
            step: optimizer steps done.
        """


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
            # A run that starts afresh where one was killed keeps nothing, whatever state the file is in.
            kept = [m for m in read_metrics(self.path) if m["step"] <= keep_to_step] if keep_to_step >= 0 else []
            write_text(self.path, "".join(json.dumps(m) + "\n" for m in kept))

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line; the folder is made by the first, so that a run that cannot start leaves none."""
        line = {"step": int(step or 0), **{k: float(v) for k, v in metrics.items()}}
        append_text(self.path, json.dumps(line) + "\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml lies beside the file."""


class TensorBoard(TensorBoardLogger, RunLogger):
    """Event files under `tensorboard/` of the run folder, with a dashboard and, at the end, a line of HParams."""

    def __init__(self, folder: Path, /) -> None:
        super().__init__(save_dir=folder, name="tensorboard", version="")

    @property
    def log_dir(self) -> str:
        """The folder of the event files; Lightning would expand `~` and `$NAME` in the run folder's name once more."""
        return os.path.join(self.root_dir, "")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Write the dashboard's layout, and the config as a text: HParams shows what is compared, with the result."""
        make_folder(Path(self.log_dir))  # refuses a link there
        charts = {c: {title: ["Multiline", keys] for title, keys in of.items()} for c, of in LAYOUT.items()}
        self.experiment.add_custom_scalars(charts)
        self.log_texts({"config": "".join(f"    {key}: {value}\n" for key, value in params.items())}, 0)

    def log_texts(self, texts: Mapping[str, str], step: int) -> None:
        """Write them under "Text"."""
        for title, text in texts.items():
            self.experiment.add_text(title, text, step)

    def save(self) -> None:
        """Nothing: Lightning would write hparams.yaml, and config.yaml lies in the run folder."""

    def finalize(self, status: str) -> None:
        """After training: what was logged is on the disk, and the file stays open for the result."""
        try:
            if self._experiment is not None:
                self._experiment.flush()
        except OSError as error:
            if status == "success":
                raise
            warn(f"tensorboard/ is not complete: {error.strerror}")  # what ended the run is raised after this

    def end(self, status: str, chosen: Mapping[str, Any], final: Mapping[str, float], step: int) -> None:
        """Write what was chosen beside what it led to, into the same file: in a second run TensorBoard would tear both
        apart.
        """
        if final:
            super().log_hyperparams(dict(chosen), {FINAL + key: value for key, value in final.items()}, step)
        if self._experiment is not None:
            self._experiment.close()


class Csv(RunLogger):
    """metrics.csv at the end of a run: one line a step, one column a key of metrics.jsonl."""

    def __init__(self, folder: Path, /) -> None:
        super().__init__()
        self.folder = RunFolder(folder)

    @property
    def name(self) -> str:
        """Lightning's label of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """One file a run."""
        return ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Nothing: all of it is in metrics.jsonl."""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml lies beside the file."""

    def end(self, status: str, chosen: Mapping[str, Any], final: Mapping[str, float], step: int) -> None:
        """Lay out what metrics.jsonl holds; a step's evaluation stands in its line."""
        lines: dict[int, dict[str, float]] = {}
        for logged in read_metrics(self.folder.metrics):
            step_of = int(logged["step"])
            lines.setdefault(step_of, {}).update(logged | {"step": step_of})
        columns = list(dict.fromkeys(key for line in lines.values() for key in line))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(lines.values())
        write_text(self.folder.root / "metrics.csv", table.getvalue())
