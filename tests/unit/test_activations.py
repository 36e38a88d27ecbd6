"""What the forward pass keeps: fewer products computed twice, saved tensors elsewhere, and the same gradients."""

from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from tuneforge import activations
from tuneforge.compat import enable_checkpointing

WIDTH = 64


class Products(TorchDispatchMode):
    """Counts matrix products by whether they are as wide as the model or of an adapter's rank, and attention."""

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm"):
            inner = args[0 if name == "mm" else 1].shape[-1]
            self.seen["wide" if inner >= WIDTH // 2 else "narrow"] += 1
        elif "attention" in name and "backward" not in name:
            self.seen["attention"] += 1
        return func(*args, **(kwargs or {}))


def model_of(checkpointing):
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=128, num_key_value_heads=2, **sizes))
    base.enable_input_require_grads()
    if checkpointing:
        enable_checkpointing(base, checkpointing == "selective")
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_dropout=0.1, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return get_peft_model(base, config).train()


def step(model):
    """Gradients by name, and the products of the backward pass alone."""
    ids = torch.arange(60).reshape(2, 30)
    torch.manual_seed(2)
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    with Products() as counted:
        loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}, counted.seen


def test_selective_recomputing_computes_no_wide_product_twice():
    kept, recomputed, selective = (step(model_of(c)) for c in (False, True, "selective"))
    for gradients, _ in (recomputed, selective):
        assert gradients.keys() == kept[0].keys()
        assert all(torch.allclose(gradients[n], g, atol=1e-6) for n, g in kept[0].items())
    # Two layers of seven products each, and those of the adapters' A; attention once a layer.
    assert kept[1]["wide"] + 14 <= recomputed[1]["wide"] <= kept[1]["wide"] + 18
    assert recomputed[1]["attention"] == kept[1]["attention"] + 2
    assert selective[1]["wide"] == kept[1]["wide"]
    assert selective[1]["attention"] == kept[1]["attention"]
    assert selective[1]["narrow"] > kept[1]["narrow"]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_waits_in_host_memory_comes_back_the_same(monkeypatch, checkpointing):
    """The copies are made here too, from host memory to host memory: which tensors move does not depend on where."""
    monkeypatch.setattr(activations, "OFFLOADED_BYTES", 1024)
    plain, _ = step(model_of(checkpointing))
    model = model_of(checkpointing)
    weights = {p.shape for p in model.parameters() if p.ndim == 2}
    moved = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *a, **k: (moved.append(tuple(a[0])) if "pin_memory" in k else None) or empty(*a, **k)
    )
    with activations.offloaded(model, "cpu"):
        gradients, _ = step(model)
    assert moved
    assert not weights & set(moved)
    assert all(torch.equal(gradients[n], g) for n, g in plain.items())
    # With recomputed layers their inputs alone are saved, one a layer, and what comes behind the last.
    inputs = [s for s in moved if s == (2, 30, WIDTH)]
    assert (len(moved) < 12) == checkpointing
    assert len(inputs) >= 2


def test_nothing_moves_on_another_device():
    model = model_of(False)
    with activations.offloaded(model, "cuda"):
        gradients, _ = step(model)
    assert all(g.isfinite().all() for g in gradients.values())
