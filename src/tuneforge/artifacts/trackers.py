"""Loggers that keep runs elsewhere: Weights & Biases and MLflow. Keys to them come from the environment alone."""

import importlib.metadata
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from tuneforge.artifacts.folder import require_no_link, write_json
from tuneforge.artifacts.kept import damaged, read_object
from tuneforge.artifacts.loggers import FINAL, RunLogger
from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.masking import mask, masked_texts
from tuneforge.schema.types import LocalPath

IDS = "trackers.json"
"""In the run folder: what each tracker calls the run, so that a resumed one goes on there."""

OFFLINE = ("offline", "dryrun", "disabled")
"""Values of WANDB_MODE in which nobody needs to be logged in."""

ENDED = {"done": "FINISHED", "refused": "FAILED", "failed": "FAILED", "interrupted": "KILLED", "pruned": "KILLED"}
"""MLflow's words for how runs end."""


class Wandb(WandbLogger, RunLogger):
    """A run at Weights & Biases: the config, metrics as they come, and the result's at the end."""

    def __init__(
        self,
        folder: Path,
        /,
        *,
        project: str = "tuneforge",
        name: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        offline: bool = False,
    ) -> None:
        """`name` is by default the run folder's; `offline` keeps the run in `wandb/` of it, for `wandb sync`.

        Raises:
            TuneforgeError: the package is not installed, or nobody is logged in.
        """
        _need("wandb", "wandb")
        import wandb

        # The metadata would hold the command line as it was typed: config and record have it with secrets masked.
        quiet: dict[str, Any] = {"console": "off", "silent": True, "disable_code": True, "disable_git": True}
        if not offline and os.environ.get("WANDB_MODE") not in OFFLINE:
            _refuse_strangers(wandb)
        # What the config has as names and tags is shown to whoever may see the tracker.
        name, group, tags = mask(name or folder.name), group and mask(group), tags and masked_texts(tags)
        super().__init__(
            project=project,
            name=name,
            save_dir=folder,
            id=_kept(folder, "wandb") or uuid.uuid4().hex[:12],
            entity=entity,
            group=group,
            tags=tags,
            mode="offline" if offline else None,
            settings=wandb.Settings(x_disable_meta=True, **quiet),
        )

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Open the run and store the config.

        Raises:
            TuneforgeError: the server does not answer, or refuses.
        """
        import wandb

        try:
            super().log_hyperparams(params)
        except wandb.errors.Error as error:
            fix = "logger.wandb.offline=true keeps the run in its folder, and `wandb sync` uploads it later"
            raise TuneforgeError("tracker-refuses", f"wandb: {error}", path="logger.wandb", fix=fix) from error
        _keep(Path(str(self.save_dir)), "wandb", str(self.version))

    def end(self, status: str, chosen: Mapping[str, Any], final: Mapping[str, float], step: int) -> None:
        """Put the result's measures into the summary, and close the run: another may follow in this process."""
        if self._experiment is None:
            return
        self._experiment.summary.update({FINAL + key: value for key, value in final.items()} | {"status": status})
        self._experiment.finish(exit_code=int(status != "done"))
        self._experiment = None


class MLFlow(MLFlowLogger, RunLogger):
    """A run in an MLflow store. One that fails later is told and left alone: the run's own files hold everything."""

    def __init__(
        self,
        folder: Path,
        /,
        *,
        experiment_name: str = "tuneforge",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        tags: dict[str, str] | None = None,
        store: LocalPath = "outputs",
    ) -> None:
        """Without a `tracking_uri` it is MLFLOW_TRACKING_URI, else `mlflow.db` in the folder `store`. `run_name` is by
        default the run folder's.

        Raises:
            TuneforgeError: the package is not installed.
        """
        _need("mlflow-skinny", "mlflow")
        where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _local(Path(store))
        self._folder = folder
        self._lost = False
        with _refusals():
            super().__init__(
                experiment_name=experiment_name,
                run_name=mask(run_name or folder.name),
                tracking_uri=where,
                tags=tags and masked_texts(tags),
                run_id=_kept(folder, "mlflow"),
            )

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Open the run and store the config, or open it again: MLflow's parameters cannot change.

        Raises:
            TuneforgeError: the store does not answer, or refuses.
        """
        with _refusals():
            if _kept(self._folder, "mlflow") is None:
                super().log_hyperparams(params)
                _keep(self._folder, "mlflow", str(self.run_id))
            else:
                self.experiment.update_run(self.run_id, status="RUNNING")

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send them."""
        self._send(super().log_metrics, metrics, step)

    def finalize(self, status: str = "success") -> None:
        """Nothing yet: the result is measured after training."""

    def end(self, status: str, chosen: Mapping[str, Any], final: Mapping[str, float], step: int) -> None:
        """Send the result's measures, and how the run ended."""
        if not self._initialized:
            return
        if final:
            self.log_metrics({FINAL + key: value for key, value in final.items()}, step)
        self._send(self.experiment.set_terminated, self.run_id, ENDED[status])

    def _send(self, call: Callable[..., Any], *values: Any) -> None:
        from mlflow.exceptions import MlflowException

        if self._lost:
            return
        try:
            call(*values)
        except MlflowException as error:
            self._lost = True
            message = f"mlflow: {error}; the run goes on, with its metrics in metrics.jsonl"
            warn(Problem("tracker-lost", message, "logger.mlflow"))


@contextmanager
def _refusals() -> Iterator[None]:
    """MLflow's errors before the run has begun, as ours."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        fix = "see MLFLOW_TRACKING_URI or logger.mlflow.tracking_uri, and who may write there"
        raise TuneforgeError("tracker-refuses", f"mlflow: {error}", path="logger.mlflow", fix=fix) from error


def _local(store: Path) -> str:
    """A database that needs no server; MLflow refuses to keep runs in plain files since 3.7."""
    file = store / "mlflow.db"
    require_no_link(file)
    if file.exists():
        _require_mlflow(file)
    return f"sqlite:///{file.resolve()}"


def _require_mlflow(file: Path) -> None:
    """Nothing, where a database is MLflow's, or empty: it makes its tables in any."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)) as database:
            tables = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error as error:
        raise damaged(file, f"is no database of MLflow: {error}") from error
    if tables and "alembic_version" not in tables:
        raise damaged(file, f"is no database of MLflow: it has the tables {', '.join(sorted(tables)[:5])}")


def _need(package: str, extra: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        fix = f"pip install 'tuneforge[{extra}]', or drop logger={extra}"
        message = f"needs the package {package}, which is not installed"
        raise TuneforgeError("no-tracker", message, path=f"logger.{extra}", fix=fix) from error


def _refuse_strangers(wandb: Any) -> None:
    """wandb itself would ask for a key on the terminal, in the middle of the run."""
    if not wandb.login(prompt=False, verify=False):
        raise TuneforgeError(
            "not-logged-in",
            "nobody is logged in to Weights & Biases on this machine",
            path="logger.wandb",
            fix="run `wandb login`, set WANDB_API_KEY, or logger.wandb.offline=true",
        )


def _kept(folder: Path, tracker: str) -> str | None:
    path = folder / IDS
    return read_object(path, {"*": str}, "list of trackers").get(tracker) if path.is_file() else None


def _keep(folder: Path, tracker: str, id_: str) -> None:
    path = folder / IDS
    write_json(path, {**(read_object(path, {"*": str}, "list of trackers") if path.is_file() else {}), tracker: id_})
