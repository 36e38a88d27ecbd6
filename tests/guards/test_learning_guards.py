"""Too much learning of too few rows, none at all, and the end that was asked for."""

import json

import pytest
import torch

from guards.conftest import FAST, adapter, evals, found, write_rows
from tuneforge.objectives.base import Objective


@pytest.fixture
def ten(fast, tmp_path):
    """Ten rows for fifty epochs, and others held out; evaluated every two epochs."""
    held = write_rows(tmp_path / "held.jsonl", 10, seed=1)
    options = (
        *("data.max_rows=10", "batch.effective=10", "batch.per_device=10", "trainer.val_check_interval=2"),
        *(f"data.split.eval_path={held}", "data.split.by=auto", "optim.lr=1e-2"),
    )
    return lambda *overrides: fast(*options, *overrides, steps=50)


def test_ten_rows_for_fifty_epochs_are_stopped_with_the_best_restored(ten):
    ran = ten("callbacks.overfit_guard.action=stop")
    assert ran.code == 3
    (event,) = [e for e in ran.record["guards"]["overfit_guard"]["events"] if e["did"] == "stopped the run"]
    assert event["code"] == "overfitting"
    measured = evals(ran)
    best = min(measured, key=measured.get)
    # One each two steps: three with a gap on end, once it is there.
    assert event["step"] <= best + 2 * 6
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(measured[best], abs=1e-6)
    assert "trainer.max_epochs" in ran.err
    assert ran.metrics[-2]["overfit_guard/gap"] > 0.2
    assert ran.record["status"] == "refused"


def test_early_stopping_is_a_normal_end(ten):
    ran = ten("callbacks.early_stopping.patience=2", "callbacks.overfit_guard.action=none")
    assert ran.code == 0
    measured = evals(ran)
    best = min(measured, key=measured.get)
    assert max(measured) == best + 4
    assert f"stopped early at step {best + 4} of 50: eval/loss has not improved on" in ran.out
    assert ran.record["status"] == "done"
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(measured[best], abs=1e-6)
    assert "overfit_guard" not in ran.record["guards"]


def test_the_best_checkpoint_can_be_the_highest(command, tmp_path):
    rows = [{"text": f"row {i} is {'even' if i % 2 else 'odd'}", "label": "ab"[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = command(
        *("task_recipe=classification", *FAST, f"data.path={tmp_path / 'rows.jsonl'}", "trainer.max_steps=12"),
        *("callbacks.checkpoints.monitor=eval/accuracy", "callbacks.checkpoints.mode=max"),
        "callbacks.early_stopping.patience=2",
    )
    assert ran.code == 0, ran.err
    measured = {m["step"]: m["eval/accuracy"] for m in ran.metrics if "eval/accuracy" in m and m["step"]}
    best = max(measured, key=measured.get)
    (gate,) = [g["value"] for g in ran.record["gates"] if g["name"] == "best checkpoint kept"]
    assert gate == f"step {best}, eval/accuracy {measured[best]:.4f}"
    assert ran.record["metrics"]["after"]["eval/accuracy"] == pytest.approx(measured[best])


def test_a_rate_of_nothing_is_seen_at_the_first_evaluation(fast):
    ran = fast("optim.lr=1e-30", "callbacks.underfit_guard.action=stop")
    assert ran.code == 3
    assert found(ran, "underfit_guard") == [(4, "nothing-moves", "stopped the run")]
    assert "no trained weight has changed in 4 steps" in ran.err
    assert "optim.lr=1e-05" in ran.err


def test_modules_without_gradients_are_named(fast, monkeypatch):
    configure = Objective.configure_model

    def deaf(self):
        fresh = self.model is None
        configure(self)
        for name, p in self.named_parameters() if fresh else ():
            if "layers.2.self_attn.v_proj" in name and p.requires_grad:
                p.register_hook(lambda gradient: gradient * 0)

    monkeypatch.setattr(Objective, "configure_model", deaf)
    ran = fast(steps=4)
    assert ran.code == 0
    assert found(ran, "underfit_guard") == [(4, "dead-modules", "warned")]
    (event,) = ran.record["guards"]["underfit_guard"]["events"]
    assert event["message"].startswith("2 of ")
    assert "layers.2.self_attn.v_proj.lora_A" in event["message"]


def test_a_flat_loss_is_said_after_warm_up(fast):
    ran = fast("optim.lr=1e-7", "callbacks.underfit_guard.after_steps=6", steps=8)
    assert ran.code == 0
    assert found(ran, "underfit_guard") == [(8, "flat-loss", "warned")]
    assert all(torch.isfinite(w).all() for w in adapter(ran).values())


def test_train_losses_between_two_evaluations_outlive_a_stop():
    import torch

    from tuneforge.callbacks.overfit_guard import OverfitGuard
    from tuneforge.steps import StepFacts

    whole, stopped, resumed = OverfitGuard(), OverfitGuard(), OverfitGuard()
    for step, loss in enumerate((2.1, 1.7, 1.3), 1):
        facts = StepFacts(step=step, loss=torch.tensor(loss), grad_norm=torch.tensor(1.0))
        whole.watch(facts, None)
        if step == 3:
            resumed.load_state_dict(stopped.state_dict())
        (stopped if step < 3 else resumed).watch(facts, None)
    assert torch.equal(resumed._sums, whole._sums)
