"""What one process sees, all of them act on."""

import json
import math

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
PROJECT = '[project]\nname = "fault"\nversion = "1"\n[project.entry-points."tuneforge.plugins"]\nfault = "plug_fault"\n'


def test_a_nan_on_the_second_process_alone_is_skipped_and_undone_by_both(fast, tmp_path, monkeypatch):
    package = tmp_path / "plugins" / "fault" / "plug_fault"
    (package / "conf" / "callbacks").mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PROJECT)
    (package / "__init__.py").write_text(FAULT)
    (package / "conf" / "callbacks" / "fault.yaml").write_text(
        "# python -m tuneforge callbacks=fault\ndefaults:\n  - default\nfault:\n  _target_: plug_fault.Fault\n"
    )
    monkeypatch.delenv("TUNEFORGE_PLUGINS")
    monkeypatch.chdir(tmp_path)
    ran = fast(
        *("callbacks=fault", "strategy=ddp", "trainer.devices=2", "batch.per_device=2", "trainer.val_check_interval=6"),
        *("callbacks.nan_guard.keep_every=1", "optim.lr=1e-2"),
        steps=6,
    )
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
