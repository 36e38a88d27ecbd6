"""What one process sees, all of them act on."""

import json
import math

import pytest
import torch

from guards.conftest import adapter, found

FAULT = '''
import lightning.pytorch as pl


class Fault(pl.Callback):
    """The second process divides its loss by no labels: what it learns from is not a number."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == 1 and trainer.global_step in (2, 3, 4):
            batch["num_labels"].fill_(0)
'''
SLOW = '''
import time

import lightning.pytorch as pl


class Fault(pl.Callback):
    """Rows come slowly to the second process."""

    def on_fit_start(self, trainer, pl_module):
        rows = type(pl_module.context.train_rows)
        get = rows.__getitem__

        def slow(self, index):
            time.sleep(0.1 if isinstance(index, tuple) else 0)
            return get(self, index)

        if trainer.global_rank == 1:
            rows.__getitem__ = slow
'''
PROJECT = '[project]\nname = "fault"\nversion = "1"\n[project.entry-points."tuneforge.plugins"]\nfault = "plug_fault"\n'


@pytest.fixture
def faulty(fast, tmp_path, monkeypatch):
    """Run with a callback of a plugin on two processes; with its code."""

    def call(code, *overrides, steps):
        _write(tmp_path, code)
        monkeypatch.delenv("TUNEFORGE_PLUGINS")
        monkeypatch.chdir(tmp_path)
        return fast(
            *("callbacks=fault", "strategy=ddp", "trainer.devices=2", "batch.per_device=2", *overrides), steps=steps
        )

    return call


def _write(tmp_path, code):
    package = tmp_path / "plugins" / "fault" / "plug_fault"
    (package / "conf" / "callbacks").mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text(code)
    (package / "conf" / "callbacks" / "fault.yaml").write_text(
        "# python -m tuneforge callbacks=fault\ndefaults:\n  - default\nfault:\n  _target_: plug_fault.Fault\n"
    )


def test_a_nan_on_the_second_process_alone_is_skipped_and_undone_by_both(faulty):
    options = ("trainer.val_check_interval=6", "callbacks.nan_guard.keep_every=1", "optim.lr=1e-2")
    ran = faulty(FAULT, *options, steps=6)
    assert ran.code == 0, ran.err + ran.out
    assert [f[:2] for f in found(ran, "nan_guard")] == [(3, "not-finite"), (4, "not-finite"), (5, "rewound")]
    lines = [json.loads(text) for text in (ran.folder / "bad_batches.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 4, 5]
    # Two micro-batches on two processes: the first column is the process that saw nothing.
    for line in lines:
        finite = [[math.isfinite(loss) for loss in pair] for pair in line["micro_batches"]]
        assert finite == [[True, False], [True, False]]
        assert len(line["rows"]) == 4
    assert all(torch.isfinite(w).all() for w in adapter(ran).values())
    # One loss for both: had one of them stepped alone, their weights, and the sum of their losses, would differ.
    assert ran.metrics[-1]["eval/loss"] == ran.record["metrics"]["after"]["eval/loss"]


@pytest.mark.soak
def test_rows_that_are_slow_on_the_second_process_alone_end_both_and_one_logs(faulty):
    options = ("callbacks.waste_guard.window=4", "callbacks.waste_guard.action=stop", "logger=default")
    ran = faulty(SLOW, *options, "trainer.val_check_interval=100", steps=20)
    assert ran.code == 3, ran.err + ran.out
    assert found(ran, "waste_guard") == [(9, "data-wait", "stopped the run")]
    assert len(list((ran.folder / "tensorboard").iterdir())) == 1
