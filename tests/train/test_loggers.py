"""What loggers leave: a dashboard, a line to compare runs by, a table; and runs kept elsewhere without a secret."""

import csv
import importlib.metadata
import json
import textwrap

import pytest

from guards.conftest import write_rows
from helpers import SHORT, signal_at
from tuneforge.artifacts import trackers
from tuneforge.artifacts.loggers import LAYOUT
from tuneforge.objectives.base import Objective

# mlflow 3.17 uses what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

FEW = (*SHORT, "trainer.max_steps=3", "samples.num=0")
SECRET = "hf_" + "x" * 30


def events(folder):
    """The run's event files, of which there is one, read as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (folder / "tensorboard").iterdir()
    accumulator = EventAccumulator(str(file))
    accumulator.Reload()
    return accumulator


def tensor_of(event):
    return event.tensor_proto.string_val[0]


# ---- TensorBoard


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run that found something, with what TensorBoard reads of it."""
    from tuneforge.cli import run

    folder = tmp_path_factory.mktemp("logged") / "run"
    code = run(
        [*FEW, "samples.num=1", "logger=csv", "optim.lr=1e-30", "trainer.val_check_interval=2",
         f"hydra.run.dir={folder}", f"output_root={folder.parent}"]
    )  # fmt: skip
    assert code == 0
    return folder, events(folder)


def test_the_texts_show_config_samples_gates_and_findings(logged):
    folder, accumulator = logged
    texts = {
        tag.removesuffix("/text_summary"): tensor_of(accumulator.Tensors(tag)[-1]).decode()
        for tag in accumulator.Tags()["tensors"]
        if tag.endswith("/text_summary")
    }
    assert {"config", "quality gates", "samples/0", "underfit_guard/nothing-moves"} <= texts.keys()
    assert all(text.strip() for text in texts.values())
    assert "    optim.lr: 1e-30\n" in texts["config"]
    sample = json.loads((folder / "run.json").read_text())["samples"]["after"][0]
    assert textwrap.indent(sample["wanted"], "    ", lambda _: True) in texts["samples/0"]


def test_the_dashboard_shows_what_the_run_logs(logged):
    from tensorboard.plugins.custom_scalar import layout_pb2

    _, accumulator = logged
    (event,) = accumulator.Tensors("custom_scalars__config__")
    assert accumulator.SummaryMetadata("custom_scalars__config__").plugin_data.plugin_name == "custom_scalars"
    layout = layout_pb2.Layout.FromString(tensor_of(event))
    shown = {c.title: [list(chart.multiline.tag) for chart in c.chart] for c in layout.category}
    assert shown == {category: list(charts.values()) for category, charts in LAYOUT.items()}
    keys = {key for charts in shown.values() for chart in charts for key in chart}
    # These come of a GPU, of 25 steps, and of what this run did not do.
    absent = {"waste_guard/gpu_utilisation", "waste_guard/gpu_memory", "waste_guard/data_wait"}
    assert keys - set(accumulator.Tags()["scalars"]) == absent


def test_every_key_of_the_dashboard_is_logged_by_something():
    """A key that a guard calls otherwise would leave an empty chart."""
    from pathlib import Path

    source = "".join(p.read_text() for p in Path(trackers.__file__).parents[1].rglob("*.py") if p.stem != "loggers")
    keys = [key for charts in LAYOUT.values() for chart in charts.values() for key in chart]
    assert len(keys) == 16
    gpu = {"gpu_utilisation": "gpu_{name}", "gpu_memory": "gpu_{name}"}
    names = {key: gpu.get(key.rpartition("/")[2], key.rpartition("/")[2]) for key in keys}
    assert [key for key, name in names.items() if f'{name}"' not in source] == []


def test_what_a_guard_found_is_a_text(logged):
    _, accumulator = logged
    (event,) = accumulator.Tensors("underfit_guard/nothing-moves/text_summary")
    assert b"no trained weight has changed" in tensor_of(event)


def test_runs_compare_by_what_was_chosen_and_what_came_of_it(logged):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    folder, accumulator = logged
    content = accumulator.PluginTagToContent("hparams")
    assert set(content) == {metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG}
    start = plugin_data_pb2.HParamsPluginData.FromString(content[metadata.SESSION_START_INFO_TAG])
    chosen = start.session_start_info.hparams
    assert chosen["optim.lr"].number_value == 1e-30
    assert chosen["method"].string_value == "lora"
    assert chosen["batch.effective"].number_value == 8
    assert "output_root" not in chosen
    experiment = plugin_data_pb2.HParamsPluginData.FromString(content[metadata.EXPERIMENT_TAG]).experiment
    assert "final/eval/loss" in [m.name.tag for m in experiment.metric_infos]
    (final,) = accumulator.Scalars("final/eval/loss")
    record = json.loads((folder / "run.json").read_text())
    assert final.value == pytest.approx(record["metrics"]["after"]["eval/loss"])
    assert final.step == 3


# ---- a table


def test_the_table_holds_what_metrics_jsonl_holds(logged):
    folder, _ = logged
    with (folder / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [int(line["step"]) for line in lines] == [0, 1, 2, 3]
    for logged_line in metrics:
        (line,) = [line for line in lines if int(line["step"]) == logged_line["step"]]
        assert all(float(line[key]) == pytest.approx(value) for key, value in logged_line.items())
    assert lines[1]["eval/loss"] == ""


# ---- trackers


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store without a server; making its tables takes seconds."""
    pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def mlflow(store, request, monkeypatch):
    """Options for an experiment of the test's own, and the runs that it holds."""
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    name = request.node.name
    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")

    def runs():
        (experiment,) = [e for e in client.search_experiments() if e.name == name]
        return client.search_runs([experiment.experiment_id])

    def steps(run):
        return [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]

    return (f"logger.mlflow.store={store}", "logger=mlflow", f"logger.mlflow.experiment_name={name}"), runs, steps


def test_mlflow_holds_config_metrics_and_result(command, mlflow):
    options, runs, steps = mlflow
    ran = command(*FEW, *options, "optim.lr=1e-3")
    assert ran.code == 0, ran.err
    (kept,) = runs()
    assert kept.info.status == "FINISHED"
    assert kept.info.run_name == ran.folder.name
    assert kept.data.params["method.name"] == "lora"
    assert float(kept.data.params["optim.lr"]) == 1e-3
    assert kept.data.metrics["final/eval/loss"] == pytest.approx(ran.record["metrics"]["after"]["eval/loss"])
    assert steps(kept) == [1, 2, 3]


def test_an_interrupted_run_goes_on_in_the_same_place_of_mlflow(command, mlflow, monkeypatch):
    options, runs, steps = mlflow
    with monkeypatch.context() as patch:
        signal_at(patch, 2)
        stopped = command(*FEW, *options)
    assert stopped.code == 143
    assert [r.info.status for r in runs()] == ["KILLED"]
    assert command(*FEW, *options, f"resume={stopped.folder}", folder=stopped.folder).code == 0
    (kept,) = runs()
    assert kept.info.status == "FINISHED"
    assert steps(kept) == [1, 2, 3]


def test_a_pruned_trial_has_ended_in_mlflow_too(command, mlflow, monkeypatch):
    options, runs, _ = mlflow
    monkeypatch.setattr("tuneforge.finish.pruned", lambda trainer: True)
    ran = command(*FEW, *options)
    assert ran.code == 0, ran.err
    assert ran.record["status"] == "pruned"
    assert [r.info.status for r in runs()] == ["KILLED"]


def test_a_store_that_is_lost_does_not_end_the_run(command, mlflow, monkeypatch):
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    send = MlflowClient.log_batch

    def failing(self, run_id, metrics=(), **rest):
        if any(m.key == "train/loss" for m in metrics):
            raise MlflowException("the store is gone")
        return send(self, run_id, metrics=metrics, **rest)

    monkeypatch.setattr(MlflowClient, "log_batch", failing)
    ran = command(*FEW, *mlflow[0])
    assert ran.code == 0
    assert ran.out.count("logger.mlflow: mlflow: the store is gone; the run goes on") == 1


def test_a_store_that_is_not_there_is_said_with_its_way_out(command, mlflow):
    ran = command(*FEW, *mlflow[0], "logger.mlflow.tracking_uri=nonsense://nowhere")
    assert ran.code == 2
    assert "logger.mlflow: mlflow: " in ran.err
    assert "logger.mlflow.tracking_uri" in ran.err


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """Offline, for a user whose key is in the environment."""
    package = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("HOME", str(tmp_path))
    return package


def test_wandb_keeps_a_run_offline_without_a_secret(command, wandb, tmp_path, monkeypatch):
    rows = write_rows(tmp_path / f"{SECRET}.jsonl", 40)
    options = (*FEW, "logger=wandb", "logger.wandb.offline=true", "data=file", f"data.path={rows}")
    monkeypatch.setattr("sys.argv", ["tuneforge", *options])
    ran = command(*options)
    assert ran.code == 0, ran.err
    assert wandb.run is None
    (file,) = (ran.folder / "wandb").rglob("*.wandb")
    kept = file.read_bytes()
    assert b"method.name" in kept
    assert b"final/eval/loss" in kept
    for path in (ran.folder / "wandb").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
            assert b"a" * 40 not in path.read_bytes(), path


def test_who_is_not_logged_in_to_wandb_is_told_before_the_weights_load(command, wandb, monkeypatch, tmp_path):
    from wandb.sdk.lib.wbauth import unauthenticate_session

    unauthenticate_session()
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(Objective, "configure_model", lambda self: pytest.fail("weights were loaded"))
    ran = command(*FEW, "logger=wandb")
    assert ran.code == 2
    assert "nobody is logged in to Weights & Biases" in ran.err
    assert "logger.wandb.offline=true" in ran.err
    assert not ran.folder.joinpath("run.json").exists()


@pytest.mark.parametrize(("option", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_tracker_without_its_package_is_refused_before_the_weights_load(command, monkeypatch, option, package):
    version = importlib.metadata.version

    def absent(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    monkeypatch.setattr(Objective, "configure_model", lambda self: pytest.fail("weights were loaded"))
    ran = command(*FEW, f"logger={option}")
    assert ran.code == 2
    assert f"logger.{option}: needs the package {package}, which is not installed" in ran.err
    assert f"pip install 'tuneforge[{option}]'" in ran.err
