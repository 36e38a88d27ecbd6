"""A step that is not finite changes nothing; several in a row are undone; what cannot be undone ends the run."""

import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from guards.conftest import adapter, evals, found
from tuneforge.objectives.causal_lm import CausalLM


def poison(monkeypatch, when):
    """Losses of train batches for which `when(module, batch)` become NaN."""
    loss_of_logits = CausalLM.loss_of_logits

    def poisoned(self, logits, labels, batch):
        loss = loss_of_logits(self, logits, labels, batch)
        return loss * float("nan") if self.trainer.training and when(self, batch) else loss

    monkeypatch.setattr(CausalLM, "loss_of_logits", poisoned)


def weights_at(monkeypatch):
    """Step -> the trained weights before it."""
    start, kept = CausalLM.on_train_batch_start, {}

    def keeping(self, batch, batch_idx):
        kept.setdefault(
            self.trainer.global_step + 1, [p.detach().clone() for p in self.parameters() if p.requires_grad]
        )
        start(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "on_train_batch_start", keeping)
    return kept


def same(one, two):
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# The first honours a flag on the device, the second does not and gets gradients of zero.
@pytest.mark.parametrize("optim", ["adamw", "muon"])
def test_a_row_that_breaks_the_loss_is_skipped_and_named(fast, monkeypatch, optim):
    broken = []

    def has_the_row(module, batch):
        row = torch.as_tensor(module.context.train_rows.documents[7].input_ids)
        hits = [bool((ids[: len(row)] == row).all()) for ids in batch["input_ids"]]
        broken.extend([module.trainer.global_step + 1] if any(hits) else [])
        return any(hits)

    poison(monkeypatch, has_the_row)
    weights = weights_at(monkeypatch)
    ran = fast(f"optim={optim}", steps=6)
    assert ran.code == 0, ran.err
    (step,) = broken
    assert found(ran, "nan_guard") == [(step, "not-finite", "skipped the step")]
    if optim == "adamw":
        assert same(weights[step], weights[step + 1])
    assert not same(weights[step + 1], weights[step + 2])
    (line,) = [json.loads(text) for text in (ran.folder / "bad_batches.jsonl").read_text().splitlines()]
    assert line["step"] == step
    assert len(line["documents"]) == 4  # one micro-batch of the two
    assert "rows.jsonl:" in line["documents"][0]
    assert [m["nan_guard/skipped"] for m in ran.metrics if "nan_guard/skipped" in m][-1] == 1
    assert ran.out.count("callbacks.nan_guard: step") == 1
    assert "optim.lr=0.0005" in ran.out
    assert all(torch.isfinite(w).all() for w in adapter(ran).values())


@pytest.fixture
def overflowing():
    """After each optimizer step the weights are so large that the next forward pass overflows."""

    def enlarge(optimizer, args, kwargs):
        with torch.no_grad():
            for group in optimizer.param_groups:
                torch._foreach_add_(group["params"], 1e30)

    handle = register_optimizer_step_post_hook(enlarge)
    yield
    handle.remove()


def test_a_rate_that_explodes_is_halved_and_then_ends_the_run(fast, overflowing):
    """Each time: one step overflows the weights, three in a row are seen, and what was before comes back."""
    ran = fast("optim.lr=1e-3", "callbacks.nan_guard.rewinds=2", steps=40)
    assert ran.code == 3
    codes = [code for _, code, _ in found(ran, "nan_guard")]
    assert codes.count("rewound") == 2
    assert codes[-1] == "not-finite-again"
    assert found(ran, "nan_guard")[-1][0] <= 15
    rates = {m["train/lr"] for m in ran.metrics if "train/lr" in m}
    assert sorted(rates) == pytest.approx([2.5e-4, 5e-4, 1e-3])
    assert ran.record["status"] == "refused"
    assert ran.record["exit"] == 3
    assert "going back is no help" in ran.err
    # What was before the first step is the best there is, and that is what the run leaves.
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(evals(ran)[0], abs=1e-6)
    assert all(torch.isfinite(w).all() for w in adapter(ran).values())
    assert (ran.folder / "report.html").exists()


def test_stop_ends_at_the_first_and_keeps_the_best(fast, monkeypatch):
    poison(monkeypatch, lambda module, batch: module.trainer.global_step == 6)
    ran = fast("callbacks.nan_guard.action=stop")
    assert ran.code == 3
    assert found(ran, "nan_guard") == [(7, "not-finite", "stopped the run")]
    assert max(m["step"] for m in ran.metrics) == 8  # the host looks one step late
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(min(evals(ran).values()), abs=1e-6)


def test_a_run_of_them_goes_back_and_the_run_ends_well(fast, monkeypatch):
    poison(monkeypatch, lambda module, batch: module.trainer.global_step in (5, 6, 7))
    weights = weights_at(monkeypatch)
    ran = fast("callbacks.nan_guard.keep_every=2", steps=12)
    assert ran.code == 0, ran.err
    assert found(ran, "nan_guard")[-1] == (8, "rewound", "went back to step 4")
    assert same(weights[9], weights[5])
    assert not same(weights[9], weights[6])
    assert ran.metrics[-2]["nan_guard/rewinds"] == 1


def test_weights_that_are_broken_before_the_start_are_named(fast, model_folders, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"])
    model.model.layers[1].mlp.up_proj.weight.data[3, 4] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    AutoTokenizer.from_pretrained(model_folders["llama"]).save_pretrained(tmp_path / "broken")
    ran = fast("model=hf", f"model.path={tmp_path / 'broken'}")
    assert ran.code == 3
    assert "1 of the model's tensors" in ran.err
    assert "layers.1.mlp.up_proj" in ran.err
    assert not (ran.folder / "adapter").exists()


def test_a_last_step_that_overflows_does_not_leave_the_run(fast, overflowing):
    ran = fast("callbacks.nan_guard.action=repair", "trainer.val_check_interval=1", steps=1)
    assert ran.code == 3
    assert "the last evaluation had a loss of nan; the weights of step 0 are back" in ran.err
    assert max(w.abs().max() for w in adapter(ran).values()) < 1
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(evals(ran)[0], abs=1e-6)
