"""LoRA-FA learns with half the weights and less memory, and what it saves is a plain LoRA."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from tuneforge.errors import TuneforgeError
from tuneforge.methods.lora import Lora
from tuneforge.testing import check_plugin
from tuneforge_lorafa.lorafa import LoraFA, corrected, frozen, pairs

RANK, HIDDEN, INNER, LAYERS, HEADS, KEYS = 4, 32, 80, 2, 4, 2
TOKENS = 48


def tiny(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TOKENS,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=64,
        initializer_range=0.2,  # ten times the default, or the frozen head could say little whatever it is given
    )
    return LlamaForCausalLM(config).to(dtype)


def applied(method: Lora, adapter: str | None = None, dtype: torch.dtype = torch.float32) -> PeftModel:
    """A tiny model under the method. The adapters' seed is one of its own: two methods draw the same A."""
    base = tiny(dtype)
    torch.manual_seed(1)
    return method.apply(base, adapter).train()


def ids(rows: int = 8) -> torch.Tensor:
    """Each token follows from the one before it, so that there is something to learn."""
    start = torch.randint(TOKENS, (rows, 1), generator=torch.Generator().manual_seed(2))
    return (start + 5 * torch.arange(12)) % TOKENS


def loss_of(model: PeftModel, tokens: torch.Tensor) -> torch.Tensor:
    return model(input_ids=tokens, labels=tokens, use_cache=False).loss


def train(model: PeftModel, steps: int = 30) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(steps):
        loss = loss_of(model, ids())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids(2), use_cache=False).logits


def test_it_conforms():
    passed = check_plugin(Path(__file__).parents[1])
    assert "method=lorafa trains two steps, saves and reloads" in passed


@pytest.mark.parametrize("correct_gradient", [False, True])
def test_the_loss_falls_and_only_b_moves(correct_gradient):
    model = applied(LoraFA(r=RANK, correct_gradient=correct_gradient))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    losses = train(model)
    assert losses[-1] < 0.8 * losses[0], losses
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if ".lora_B." in n}
    assert len(moved) == 7 * LAYERS


def test_the_trained_weights_are_what_the_formula_says():
    """r * out for each of the seven matrices of a layer; LoRA trains r * in beside them."""
    keys = HIDDEN // HEADS * KEYS
    shapes = [(HIDDEN, HIDDEN), (HIDDEN, keys), (HIDDEN, keys), (HIDDEN, HIDDEN)]
    shapes += [(HIDDEN, INNER), (HIDDEN, INNER), (INNER, HIDDEN)]
    assert trained(LoraFA(r=RANK)) == LAYERS * RANK * sum(out for _, out in shapes)
    assert trained(Lora(r=RANK)) == LAYERS * RANK * sum(into + out for into, out in shapes)


def trained(method: Lora) -> int:
    return sum(p.numel() for p in applied(method).parameters() if p.requires_grad)


def test_what_is_saved_is_a_plain_lora(tmp_path):
    method = LoraFA(r=RANK)
    model = applied(method)
    train(model, steps=5)
    method.save(model, tmp_path)
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(tiny(), tmp_path)
    assert torch.allclose(logits(again), logits(model), atol=1e-5)
    assert not torch.allclose(logits(model), logits(tiny()), atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(tiny()))


def test_an_adapter_that_is_continued_keeps_its_a_frozen(tmp_path):
    first = LoraFA(r=RANK)
    model = applied(first)
    train(model, steps=5)
    first.save(model, tmp_path)
    again = applied(LoraFA(r=RANK), str(tmp_path))
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(frozen(model), frozen(again), strict=True))
    assert {n.partition(".lora_")[2][0] for n, p in again.named_parameters() if p.requires_grad} == {"B"}


def test_a_checkpoint_brings_a_back_under_another_seed():
    method = LoraFA(r=RANK)
    model = applied(method)
    train(model, steps=5)
    trained_only = {n: p for n, p in model.state_dict().items() if ".lora_B." in n}
    base = tiny()
    torch.manual_seed(99)
    again = method.apply(base)
    again.load_state_dict(trained_only, strict=False)
    assert not torch.allclose(logits(again), logits(model), atol=1e-3)
    method.load_state(again, method.state(model))
    assert torch.equal(logits(again), logits(model))


def test_an_embedding_learns_as_it_does_with_lora():
    """PEFT starts its A at zero: frozen, nothing would move."""
    model = applied(LoraFA(r=RANK, target_modules=["embed_tokens", "q_proj"], correct_gradient=True))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    train(model, steps=3)
    moved = {n.split(".lora_")[1].split(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"embedding_A", "embedding_B", "B"}


# ---- memory


def kept_for_backward(model: PeftModel, tokens: torch.Tensor) -> int:
    """Bytes of the tensors that a forward pass keeps, weights left out and each storage counted once."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # The tensor itself is held: a freed storage's address would be given to the next one.
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, tokens)
    sizes = {where: t.untyped_storage().nbytes() for where, t in found.items() if where not in weights}
    assert loss.requires_grad
    return sum(sizes.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_inputs_of_the_adapters_are_not_kept(dtype):
    """As tuneforge runs: the frozen base in bf16 (or fp32), adapters in fp32, products in bf16, no dropout."""
    tokens = ids(16)
    lora, fa = (kept_for_backward(applied(m, dtype=dtype), tokens) for m in (Lora(r=RANK), LoraFA(r=RANK)))
    # LoRA keeps a bf16 input for each of the four tensors that the seven adapters of a layer read: what the norms give
    # to q, k and v and to gate and up, the attention's output and the MLP's inner activation.
    inputs = LAYERS * tokens.numel() * (3 * HIDDEN + INNER) * 2
    assert lora - fa >= 0.9 * inputs, (lora, fa, inputs)
    assert fa < 0.8 * lora


def test_dropout_takes_the_saving_back():
    tokens = ids(16)
    dry, wet = (kept_for_backward(applied(LoraFA(r=RANK, lora_dropout=p)), tokens) for p in (0.0, 0.05))
    assert wet > kept_for_backward(applied(Lora(r=RANK)), tokens) > dry


# ---- the corrected gradient


def test_the_correction_is_the_nearest_change_to_the_full_gradient():
    """Two routes: the closed form, and least squares over all changes of B."""
    generator = torch.Generator().manual_seed(3)
    a, full = (torch.randn(n, 24, dtype=torch.float64, generator=generator) for n in (3, 10))
    scale = 2.0
    own = scale * full @ a.T
    nearest = torch.linalg.lstsq((scale * a).T, full.T).solution.T
    assert torch.allclose(corrected(a, scale)(own), nearest)
    assert not torch.allclose(own, nearest, rtol=0.1)


def test_the_correction_is_applied_to_every_adapter():
    plain, other = (applied(LoraFA(r=RANK, correct_gradient=c)) for c in (False, True))
    for model in (plain, other):
        loss_of(model, ids()).backward()
    checked = 0
    for (a, b, scale), (_, b_other, _) in zip(pairs(plain), pairs(other), strict=True):
        assert scale == 32 / RANK
        assert torch.allclose(corrected(a, scale)(b.grad), b_other.grad, atol=1e-6)
        checked += 1
    assert checked == 7 * LAYERS


def test_the_correction_is_nearly_a_constant_in_a_wide_layer():
    """Why it is off: with a rank far below the width, AdamW would not see it."""
    torch.manual_seed(4)
    layer = torch.nn.Linear(4096, 16, bias=False)
    torch.nn.init.kaiming_uniform_(layer.weight, a=5**0.5)
    gradient = torch.randn(64, 16)
    changed = corrected(layer.weight, 1.0)(gradient)
    assert torch.nn.functional.cosine_similarity(changed.flatten(), gradient.flatten(), 0) > 0.99


def test_the_correction_with_dora_is_refused():
    with pytest.raises(TuneforgeError, match="linear in B"):
        applied(LoraFA(r=RANK, correct_gradient=True, use_dora=True))
