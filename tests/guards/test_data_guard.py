"""Batches that are the same, have no labels, or are known already."""

from types import SimpleNamespace

import pytest
import torch

from guards.conftest import found
from tuneforge.callbacks.data_guard import DataGuard
from tuneforge.callbacks.guard import Late
from tuneforge.data.batches import Collate, StepSampler
from tuneforge.data.encode import IGNORE
from tuneforge.objectives.causal_lm import CausalLM


def test_the_same_batch_again_and_again_is_said_at_the_fourth(fast, monkeypatch):
    step_rows = StepSampler.step_rows
    monkeypatch.setattr(StepSampler, "step_rows", lambda self, step: step_rows(self, 0))
    ran = fast("callbacks.data_guard.action=stop")
    assert ran.code == 3
    assert found(ran, "data_guard") == [(4, "identical-batches", "stopped the run")]
    assert "steps 1 to 4 had the very same batch" in ran.err


def test_a_batch_without_labels_is_said(fast, monkeypatch):
    collate, calls = Collate.__call__, []

    def blank(self, items):
        batch = collate(self, items)
        if items[0][3]:  # of a train step
            calls.append(1)
            if len(calls) == 5:
                batch["labels"].fill_(IGNORE)
        return batch

    monkeypatch.setattr(Collate, "__call__", blank)
    ran = fast(steps=6)
    assert ran.code == 0
    assert found(ran, "data_guard") == [(3, "no-labels", "warned")]


@pytest.mark.parametrize(("empty", "codes"), [(2, []), (3, ["no-labels"])])
def test_a_device_without_a_row_is_no_batch_without_labels(empty, codes):
    """Six sequences a step on eight devices: the defaults on the bundled rows."""
    settled = SimpleNamespace(accumulate=1, world_size=8, rows_per_step=6)
    module = SimpleNamespace(context=SimpleNamespace(settled=settled))
    guard = DataGuard()
    trainer = SimpleNamespace(global_step=2, loggers=[], is_global_zero=True)
    guard.judge(trainer, module, (2, Late(torch.tensor([empty, 0.0, 50.0, 100.0, 8.0, 2.5]))))
    assert [event["code"] for event in guard.events] == codes


def test_rows_that_are_known_already_are_said(fast, monkeypatch):
    loss_of_logits = CausalLM.loss_of_logits

    def known(self, logits, labels, batch):
        return loss_of_logits(self, logits, labels, batch) * (0.001 if self.trainer.training else 1)

    monkeypatch.setattr(CausalLM, "loss_of_logits", known)
    ran = fast("callbacks.underfit_guard.action=none", steps=2)
    assert found(ran, "data_guard") == [(1, "low-first-loss", "warned")]


def test_a_share_of_labels_that_drifts_is_said(fast, monkeypatch):
    """From step 6 on only the last label of a row is left."""
    count = CausalLM.count

    def fewer(self, batch):
        return (
            count(self, batch) if not self.trainer.training or self.trainer.global_step < 5 else count(self, batch) // 4
        )

    monkeypatch.setattr(CausalLM, "count", fewer)
    ran = fast("callbacks.data_guard.window=4", steps=10)
    (finding,) = found(ran, "data_guard")
    assert finding == (8, "label-drift", "warned")
