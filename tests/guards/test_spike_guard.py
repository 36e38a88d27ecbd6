"""A planted spike is seen one step later, said once, and undone where that is asked for."""

import pytest
import torch

from guards.conftest import found
from tuneforge.objectives.causal_lm import CausalLM

SPIKE = 15
SOON = (
    "callbacks.spike_guard.at_least=8",
    "callbacks.spike_guard.keep_every=5",
    "callbacks.spike_guard.rewind_steps=10",
)


@pytest.fixture
def spike(monkeypatch):
    """Step 15 has fifty times its loss."""
    loss_of_logits = CausalLM.loss_of_logits

    def spiking(self, logits, labels, batch):
        loss = loss_of_logits(self, logits, labels, batch)
        return loss * 50 if self.trainer.training and self.trainer.global_step + 1 == SPIKE else loss

    monkeypatch.setattr(CausalLM, "loss_of_logits", spiking)


def test_it_is_said_with_its_numbers_and_the_run_goes_on(fast, spike):
    ran = fast(*SOON, steps=18)
    assert ran.code == 0
    assert found(ran, "spike_guard") == [(SPIKE, "spike", "warned")]
    (event,) = ran.record["guards"]["spike_guard"]["events"]
    assert "times its median" in event["message"]
    assert "optim.lr=0.0005" in event["fix"]
    shown = {m["step"]: m["spike_guard/spikes"] for m in ran.metrics if "spike_guard/spikes" in m}
    assert [shown[SPIKE], shown[SPIKE + 1], shown[18]] == [0, 1, 1]


def test_repair_goes_back_ten_steps_and_on_with_other_rows(fast, spike, monkeypatch):
    start, weights = CausalLM.on_train_batch_start, {}

    def keeping(self, batch, batch_idx):
        own = [p.detach().clone() for p in self.parameters() if p.requires_grad]
        weights.setdefault(self.trainer.global_step, own)
        start(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "on_train_batch_start", keeping)
    ran = fast(*SOON, "callbacks.spike_guard.action=repair", steps=18)
    assert ran.code == 0
    assert found(ran, "spike_guard") == [(SPIKE, "spike-undone", "went back to step 5")]
    assert all(torch.equal(a, b) for a, b in zip(weights[SPIKE + 1], weights[5], strict=True))


def test_stop_ends_the_run_a_step_later(fast, spike):
    ran = fast(*SOON, "callbacks.spike_guard.action=stop", steps=18)
    assert ran.code == 3
    assert max(m["step"] for m in ran.metrics) == SPIKE + 1
    assert ran.record["status"] == "refused"


def test_what_a_guard_has_stopped_does_not_go_on_with_the_same_options(fast, spike):
    stop = (*SOON, "callbacks.spike_guard.action=stop")
    ran = fast(*stop, steps=18)
    for resume in (ran.folder, "auto"):
        again = fast(*stop, f"resume={resume}", steps=18, folder=ran.folder)
        assert again.code == 2
        assert f"callbacks.spike_guard stopped it at step {SPIKE}: step {SPIKE}: loss " in again.err
        assert "go on all the same with callbacks.spike_guard.action=warn" in again.err
    assert ran.record["exit"] == 3
    warned = fast(*SOON, f"resume={ran.folder}", steps=18, folder=ran.folder)
    assert warned.code == 0
    assert max(m["step"] for m in warned.metrics) == 18
