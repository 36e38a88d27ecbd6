"""fp16 with loss scaling, which older GPUs need: here under a CPU's autocast, with the scaler that torch has for it."""

import functools
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from helpers import SHORT, documents
from tuneforge import build
from tuneforge.model_checks import warn_of_rounding
from tuneforge.objectives.base import Objective
from tuneforge.objectives.classification import Classification

# A CPU takes ten times as long for a token in fp16.
FEW = (*SHORT, "samples.num=0", "data.max_length=96", "data.split.max_eval_rows=4", "batch.effective=4")


@pytest.fixture
def in_fp16(monkeypatch):
    """Give the trainer the plugin it has on a GPU; Lightning replaces it on a CPU when it is asked for by name."""
    made = []

    def trainer(**options):
        assert options.pop("precision") == "32-true"
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10_000)
        made.append(MixedPrecision("16-mixed", "cpu", scaler))
        options["plugins"] = [*options["plugins"], made[-1]]
        return original(**options)

    original = pl.Trainer
    monkeypatch.setattr(build.pl, "Trainer", trainer)
    return made


# One that unscales in its step, and one that does not.
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adafactor", marks=pytest.mark.soak)])
def test_gradients_are_clipped_and_logged_at_their_own_size(command, request, optimizer):
    options = (*FEW, f"optim={optimizer}", "trainer.gradient_clip_val=0.5")
    plain = command(*options)
    (made,) = [request.getfixturevalue("in_fp16")]
    scaled = command(*options)
    assert scaled.code == 0, scaled.err
    assert made
    norms = [[m["train/grad_norm"] for m in run.metrics if "train/grad_norm" in m] for run in (plain, scaled)]
    assert norms[1] == pytest.approx(norms[0], rel=0.05)
    assert scaled.losses == pytest.approx(plain.losses, rel=0.01)


def test_every_forward_pass_of_a_run_is_computed_as_in_training(command, monkeypatch):
    """Those of checks, samples and regularisers too: outside of autocast, flash attention refuses weights in fp32."""
    from transformers import LlamaForCausalLM

    seen, forward = [], LlamaForCausalLM.forward

    @functools.wraps(forward)
    def watched(*arguments, **options):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(*arguments, **options)

    monkeypatch.setattr(LlamaForCausalLM, "forward", watched)
    checks = ("sanity.overfit_one_batch=true", "sanity.below=1.0", "regularise.ewc=1", "regularise.rows=1")
    few = ("data.max_rows=12", "data.split.max_eval_rows=4", "trainer.max_steps=1", "samples.max_new_tokens=1")
    ran = command(*SHORT, *few, *checks, "trainer.precision=bf16-mixed")
    assert ran.code == 0, ran.err
    assert len(seen) > 8
    assert all(seen)


def test_predicted_labels_are_those_of_the_evaluation():
    asked = []

    def logits(batch):
        asked.append(torch.is_autocast_enabled("cpu"))
        return torch.tensor([[0.0, 1.0]])

    module = SimpleNamespace(
        context=SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=0)),
        device="cpu",
        trainer=SimpleNamespace(precision_plugin=MixedPrecision("bf16-mixed", "cpu")),
        logits=logits,
        predicted=lambda found: found.argmax(-1),
        named=int,
    )
    assert Classification.predict(module, documents(2)) == [1, 1]
    assert asked == [True, True]


@pytest.mark.parametrize(("dtype", "attention"), [(torch.float32, "sdpa"), (torch.bfloat16, "flash_attention_2")])
def test_a_base_in_fp32_is_observed_without_flash_attention(dtype, attention):
    """It needs autocast there, in which EVA and CorDA could not decompose what they see."""
    config, seen = SimpleNamespace(_attn_implementation="flash_attention_2"), []
    base = SimpleNamespace(config=config, dtype=dtype, device="cpu", to=lambda device: None)
    base.set_attn_implementation = lambda name: setattr(config, "_attn_implementation", name)
    method = SimpleNamespace(quantises=0, num_observed=1)
    method.observe = lambda base, batches: seen.append(base.config._attn_implementation)
    machine = SimpleNamespace(device=torch.device("cpu"))
    context = SimpleNamespace(method=method, machine=machine, first_batches=lambda count, device: [])
    Objective._observe(SimpleNamespace(context=context), base)
    assert seen == [attention]
    assert config._attn_implementation == "flash_attention_2"


def test_a_step_that_overflows_is_skipped_and_the_run_goes_on(command, in_fp16, monkeypatch):
    from tuneforge.objectives.causal_lm import CausalLM

    loss = CausalLM.training_step

    def overflowing(self, batch, batch_idx):
        value = loss(self, batch, batch_idx)
        return value * float("inf") if self.trainer.global_step == 1 else value

    monkeypatch.setattr(CausalLM, "training_step", overflowing)
    ran = command(*FEW)
    assert ran.code == 0, ran.err
    assert in_fp16[0].scaler.get_scale() == 2.0**9
    assert all(torch.isfinite(torch.tensor(ran.losses)))


@pytest.mark.parametrize(("precision", "said"), [("bf16-true", True), ("bf16-mixed", False), ("32-true", False)])
def test_trained_weights_in_sixteen_bits_are_warned_of(capsys, precision, said):
    warn_of_rounding(SimpleNamespace(precision=precision))
    out = capsys.readouterr().out
    assert ("16 bits" in out) == said
    assert ("trainer.precision=bf16-mixed keeps them in fp32" in out) == said
