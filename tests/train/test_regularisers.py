"""Elastic weight consolidation and the divergence from the base hold a model near what it was."""

import pytest
import torch
from safetensors.torch import load_file

from helpers import SHORT, shown, signal_at
from tuneforge.objectives.regularisers import Consolidation, divergence

STEPS = (*SHORT, "samples.num=0", "optim.lr=5e-3", "trainer.max_steps=6", "task_recipe.dropout=0")


def distance(ran, method: str = "lora") -> float:
    """How far the adapter's update has gone: the norm of all B matrices, which start at 0."""
    weights = load_file(ran.folder / "adapter" / "adapter_model.safetensors")
    return float(sum(w.norm() ** 2 for n, w in weights.items() if "lora_B" in n)) ** 0.5


@pytest.mark.parametrize("term", ["regularise.ewc=1e6", "regularise.kl=100"])
def test_a_strong_term_keeps_the_adapter_small(command, term):
    free, held = command(*STEPS), command(*STEPS, term, "regularise.rows=8") if "ewc" in term else command(*STEPS, term)
    assert held.code == 0, held.err
    assert distance(held) < 0.7 * distance(free)
    assert held.losses[-1] > free.losses[-1]
    # What is logged is the loss on the rows alone: equal where nothing has moved yet.
    assert held.losses[0] == pytest.approx(free.losses[0], rel=1e-6)


def test_the_divergence_is_zero_for_equal_predictions_and_agrees_with_its_definition():
    torch.manual_seed(0)
    one, two = torch.randn(5, 7), torch.randn(5, 7)
    assert float(divergence(one, one)) == pytest.approx(0.0, abs=1e-6)
    p, q = one.softmax(-1), two.softmax(-1)
    assert float(divergence(one, two)) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)


def test_the_penalty_is_quadratic_in_the_way_gone_and_weighs_by_importance():
    model = torch.nn.Linear(2, 1, bias=False)
    held = Consolidation(4.0)
    held.start = {"weight": torch.tensor([[1.0, 1.0]])}
    held.importance = {"weight": torch.tensor([[1.0, 0.0]])}
    model.weight.data = torch.tensor([[3.0, 9.0]])
    assert float(held.penalty(model).detach()) == pytest.approx(0.5 * 4.0 * 4.0)


def test_a_resumed_run_has_its_importance_from_the_checkpoint(command, monkeypatch):
    steps = (*STEPS, "regularise.ewc=1e3", "regularise.rows=4", "batch.per_device=1", "trainer.val_check_interval=2")
    whole = command(*steps)
    signal_at(monkeypatch, 3)
    stopped = command(*steps)
    resumed = command(*steps, f"resume={stopped.folder}")
    assert resumed.code == 0, resumed.err
    assert shown(stopped.metrics) == shown(whole.metrics)
