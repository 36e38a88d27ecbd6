"""A trial of several processes: all have its values, and end together where it is pruned."""

import json

import optuna
import pytest

from helpers import needs_deepspeed
from tuneforge.cli import run

PLUGIN = '''
"""Tells what each process runs."""
import hashlib, json
from pathlib import Path
import lightning.pytorch as pl


class Tell(pl.Callback):
    """Files of each process."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say that the base was measured."""
        if trainer.state.fn == "validate" and trainer.global_step == 0:
            Path(trainer.default_root_dir, f"measured-{trainer.global_rank}").touch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the hash of the config that this process has, and where it stopped."""
        tree = pl_module.context.tree
        told = {
            "hash": hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest(),
            "lr": tree["optim"]["lr"], "step": trainer.global_step,
        }
        Path(trainer.default_root_dir, f"rank-{trainer.global_rank}.json").write_text(json.dumps(told))
'''


@pytest.fixture
def teller(tmp_path, monkeypatch):
    """Options with which each process tells what it runs; the working folder has the plugin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNEFORGE_PLUGINS")
    package = tmp_path / "plugins" / "teller" / "teller"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(PLUGIN)
    (package / "conf" / "callbacks").mkdir(parents=True)
    (package / "conf" / "callbacks" / "teller.yaml").write_text("tell:\n  _target_: teller.Tell\n")
    (package.parent / "pyproject.toml").write_text(
        '[project]\nname = "teller"\nversion = "1"\n[project.entry-points."tuneforge.plugins"]\nteller = "teller"\n'
    )
    return ("trainer.devices=2", "trainer.accelerator=cpu", "callbacks.tell._target_=teller.Tell")


def test_every_process_has_the_values_of_its_trial_and_all_are_pruned_at_one_step(tmp_path, tiny, capfd, teller):
    code = run([
        *("-m", *tiny, "hydra.sweep.dir=sweep", "optim.lr=tag(log, interval(1e-3, 1e-1))", "hydra.sweeper.n_trials=1"),
        *(*teller, "strategy=ddp"),
        # Ends whatever is not yet at its end: the second evaluation is above any threshold of 0.
        *("hydra.sweeper.pruner={_target_: optuna.pruners.ThresholdPruner, upper: 0.0, n_warmup_steps: 2}",),
    ])  # fmt: skip
    said = capfd.readouterr()
    assert code == 3, said
    kept = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    study = optuna.load_study(study_name=kept["study"], storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    (trial,) = study.trials
    assert trial.state.name == "PRUNED", said
    told = [json.loads((tmp_path / "sweep" / "0" / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert told[0]["lr"] == trial.params["optim.lr"]
    assert told[0]["step"] == 2 == max(trial.intermediate_values)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("ddp", marks=pytest.mark.soak_full),
        pytest.param("fsdp", marks=pytest.mark.soak),
        pytest.param("deepspeed_zero3", marks=[pytest.mark.soak_full, needs_deepspeed]),
    ],
)
def test_processes_agree_that_a_trial_before_has_measured_the_base(sweep, tiny, teller, strategy, tmp_path):
    swept = sweep(*teller, f"strategy={strategy}", "method.r=4,8")
    assert swept.code == 0, swept.said
    assert [len(list((swept.root / n).glob("measured-*"))) for n in "01"] == [2, 0]
    assert swept.record(0)["metrics"]["before"] == swept.record(1)["metrics"]["before"]
    alone = tmp_path / "alone"
    assert run([*tiny, *teller, f"strategy={strategy}", "method.r=8", f"hydra.run.dir={alone}"]) == 0
    assert json.loads((alone / "run.json").read_text())["metrics"] == swept.record(1)["metrics"]
