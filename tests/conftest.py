"""Shared fixtures: runs in this process, tiny models of several architectures, and libraries kept quiet."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import fork_server
from costs import Costs
from helpers import ARCHITECTURES, ENCODERS, Ran, make_model_folder
from shared_runs import SharedRuns

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
# The repository's own plugins/ lies in the working directory; tests that want plugins say so.
os.environ["TUNEFORGE_PLUGINS"] = "off"
# Several threads for models this small wait for each other; set before torch reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Commands that a test, or the product within it, starts as processes of their own.
subprocess.Popen = fork_server.Commands


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of costs.py."""
    parser.addoption("--budget", type=float, metavar="MINUTES", help="what the whole may take, shown at the end")
    parser.addoption("--since", type=float, metavar="SECONDS", help="when the whole began, in seconds of the epoch")
    parser.addoption("--store-costs", action="store_true", help="write down what each file costs: tests/costs.json")


def pytest_configure(config: pytest.Config) -> None:
    """Slow files first, and the sum at the end."""
    given = config.option
    config.pluginmanager.register(Costs(given.budget, given.since, given.store_costs))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Child processes are started and not forked: for what depends on the interpreter's own start."""
    monkeypatch.setattr(subprocess, "Popen", fork_server.Started)


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> SharedRuns:
    """Finished runs by their options, shared by all tests: they are looked at and never written into."""
    base = tmp_path_factory.getbasetemp()
    return SharedRuns((base if worker_id == "master" else base.parent) / "finished")


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


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each architecture with a tokenizer of its own kind, as a user's local folder."""
    names = (*ARCHITECTURES, *ENCODERS)
    return {name: make_model_folder(name, tmp_path_factory.mktemp("models") / name) for name in names}
