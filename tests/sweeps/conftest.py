"""What the tests of sweeps share."""

import json

import pytest

from helpers import Swept
from tuneforge.cli import run


@pytest.fixture(scope="session")
def tiny(model_folders, tmp_path_factory):
    """Overrides of a run of three steps with an evaluation after each, of a model of two layers."""
    rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    made = [{"instruction": f"add {i} and {i + 1}", "output": f"it is {2 * i + 1}"} for i in range(40)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in made))
    return (
        *("model=hf", f"model.path={model_folders['llama']}", "data=file", f"data.path={rows}", "trainer.max_steps=3"),
        *("trainer.val_check_interval=0.3", "samples.num=0", "batch.effective=4", "batch.per_device=4"),
        *("callbacks.underfit_guard.action=none", "callbacks.data_guard.action=none"),
    )


@pytest.fixture
def sweep(tmp_path, tiny, capfd, monkeypatch):
    """Sweep in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, folder="sweep"):
        capfd.readouterr()
        code = run(["-m", *tiny, f"hydra.sweep.dir={folder}", *arguments])
        said = capfd.readouterr()
        return Swept(code, tmp_path / folder, said.out + said.err)

    return call
