"""One matrix for all methods: each learns, moves only what it should, and comes back with plain PEFT.

A cell is (method, architecture). What upstream cannot do is refused by a rule that carries the reason, and the matrix
tries those cells too: a refusal that has become unnecessary fails.
"""

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers import same_bits
from tuneforge import rules
from tuneforge.callbacks.start_checks import packing_error
from tuneforge.compat import import_bitsandbytes, is_4bit
from tuneforge.compose import compose
from tuneforge.data.batches import Collate, Rows
from tuneforge.data.encode import Document
from tuneforge.front import front, groups
from tuneforge.objectives.causal_lm import rows_before_head
from tuneforge.objectives.parameters import parameter_groups
from tuneforge.targets import make

import_bitsandbytes()

# peft 0.21.2 warns of what AdaLoRA has pruned, and of the ranks in its own format; both load as they should.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter 'default'"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys"),
]

with front() as loader:
    METHODS = groups(loader)["method"]
ARCHITECTURES = ("llama", "gpt2")

QUANTISED = ("qlora", "qdora", "qlora_8bit")
BASE = ("full", "freeze")
PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")
MERGES = {
    "lora",
    "dora",
    "rslora",
    "lora_plus",
    "pissa",
    "olora",
    "eva",
    "corda",
    "loha",
    "lokr",
    "vera",
    "ia3",
    "fourierft",
    "vblora",
}

# What PEFT cannot do.
CANNOT = {("loha", "gpt2"), ("lokr", "gpt2"), ("olora", "gpt2")}

# Rates at which fifty steps on a model of 64 units teach a fixed text; published rates are for wide models.
RATES = {
    "full": 3e-3,
    "freeze": 1e-2,
    "ia3": 5e-2,
    "vera": 5e-2,
    "fourierft": 1e-1,
    "prompt_tuning": 1e-1,
    "lora_plus": 1e-3,
    "vblora": 5e-2,
}
SMALL = {
    "bottleneck_adapter": {"reduction_factor": 4},
    "fourierft": {"n_frequency": 200, "scaling": 50.0},
    "vera": {"r": 32},
}


def build(method: str, folder: Path):
    """(the method, its changed model in train mode, its learning rate)."""
    torch.manual_seed(0)
    node = {
        **compose([f"method={method}", "method.r=4"] if "r" in options(method) else [f"method={method}"]).tree["method"]
    }
    node |= SMALL.get(method, {})
    node |= dict.fromkeys({"lora_dropout", "vera_dropout", "vblora_dropout", "dropout"} & node.keys(), 0.0)
    if method == "freeze":
        node["last_layers"] = 1
    built = make(node)
    extra = {}
    quantised = built.quantization_config(torch.float32)
    if quantised is not None:
        extra["quantization_config"] = quantised
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra)
    torch.manual_seed(1)
    if built.num_observed:
        rows = Rows([Document(row.numpy(), row.numpy(), "") for row in batch(16, 8, None)], 8, packing=False)
        built.observe(base, [Collate(0)([rows[i] for i in range(n, n + 8)]) for n in (0, 8)])
    model = built.apply(base)
    built.on_start(model, 50)
    awake(model)
    return built, model, RATES.get(method, 1e-2)


def options(method: str) -> dict:
    return compose([f"method={method}"]).tree["method"]


def awake(model, training: bool = True):
    model.train(training)
    for module in filter(is_4bit, model.modules()):
        module.training = True
    return model


# What is learnt: four domains, in each of which every token has one successor. A base that knows all four does not know
# which it is in before the first successor; the methods are taught that it is always the first.
TOKENS, DOMAINS, FIRST = 32, 4, 10


def batch(rows: int = 8, length: int = 5, domain: int | None = 0, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    successors = torch.stack(
        [torch.randperm(TOKENS, generator=torch.Generator().manual_seed(d)) for d in range(DOMAINS)]
    )
    chosen = torch.randint(DOMAINS, (rows,), generator=generator) if domain is None else torch.full((rows,), domain)
    tokens = [torch.randint(TOKENS, (rows,), generator=generator)]
    for _ in range(length - 1):
        tokens.append(successors[chosen, tokens[-1]])
    return torch.stack(tokens, 1) + FIRST


@pytest.fixture(scope="module")
def bases(model_folders, tmp_path_factory) -> dict[str, Path]:
    """Each architecture trained on all domains: adapters have something to steer."""
    made = {}
    for name in ARCHITECTURES:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_pretrained(model_folders[name], dtype=torch.float32).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.0)
        for step in range(250):
            loss = loss_of(model, batch(32, 8, None, seed=step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        made[name] = tmp_path_factory.mktemp("bases") / name
        model.save_pretrained(made[name])
    return made


def logits(model, ids, virtual: int = 0):
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=False).logits.float()
    return out[:, virtual:]


def loss_of(model, ids, virtual: int = 0):
    out = model(input_ids=ids, use_cache=False).logits.float()[:, virtual:]
    return torch.nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def train(built, model, rate, steps: int = 50) -> list[float]:
    ids, losses = batch(), []
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0, rate, built.learning_rate_scale), lr=rate)
    for step in range(1, steps + 1):
        loss = loss_of(model, ids, built.virtual_tokens)
        penalty = built.penalty(model)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        built.on_step_end(model, step)
        losses.append(float(loss.detach()))
    return losses


def reload(built, folder, saved):
    extra = {}
    if built.quantization_config(torch.float32) is not None:
        extra["quantization_config"] = built.quantization_config(torch.float32)
    if built.trains_base:
        return AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra)
    torch.manual_seed(99)
    return PeftModel.from_pretrained(base, saved)


CELLS = [(m, a) for m in METHODS for a in ARCHITECTURES]


def test_the_matrix_covers_every_method():
    assert len(METHODS) == 24
    assert len(CELLS) == 48
    assert {m for m, _ in CANNOT} <= set(METHODS)


@pytest.mark.parametrize(("method", "architecture"), CELLS)
def test_what_upstream_cannot_do_is_refused_before_weights_load(method, architecture):
    composed = compose([f"method={method}"])
    problems = rules.architecture_problems(composed.config, {"model_type": architecture}, composed.tree["method"])
    assert [p.code for p in problems] == (["method-not-for-model"] if (method, architecture) in CANNOT else [])


@pytest.mark.parametrize(("method", "architecture"), CELLS)
def test_a_method_learns_moves_what_it_should_and_comes_back(method, architecture, bases, tmp_path):
    folder = bases[architecture]
    if (method, architecture) in CANNOT:
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever upstream raises; none means the refusal can go
            train(*build(method, folder), steps=1)
        return
    built, model, rate = build(method, folder)
    ids, virtual = batch(), built.virtual_tokens
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    start = float(loss_of(awake(model, False), ids, virtual).detach())
    losses = train(built, awake(model), rate)
    end = float(loss_of(awake(model, False), ids, virtual).detach())
    assert end < 0.9 * start, (start, end)
    assert losses[-1] < losses[0]

    # Only what should move has moved.
    own = dict(model.named_parameters())
    moved = [n for n, before in frozen.items() if not same_bits(own[n], before)]
    assert moved == []
    if method in BASE:
        check_saved(built, model, folder, tmp_path, ids)
        return

    # Switched off, the adapter leaves the untouched base.
    base = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        **({"quantization_config": built.quantization_config(torch.float32)} if method in QUANTISED else {}),
    )
    plain = logits(awake(base, False), ids)
    assert end < 0.9 * float(torch.nn.functional.cross_entropy(plain[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))
    with model.disable_adapter():
        off = logits(model, ids)
    same = torch.allclose(off, plain, atol=1e-4)
    assert same != getattr(built, "rewrites_base", False)
    check_saved(built, model, folder, tmp_path, ids)


def check_saved(built, model, folder, tmp_path, ids):
    """Saved by the method, loaded by transformers and PEFT alone under another seed: the same logits."""
    built.save(model, tmp_path / "saved")
    again = awake(reload(built, folder, tmp_path / "saved"), False)
    ours, theirs = logits(awake(model, False), ids, built.virtual_tokens), logits(again, ids, built.virtual_tokens)
    assert torch.allclose(ours, theirs, atol=2e-3, rtol=1e-3), float((ours - theirs).abs().max())
    assert any((tmp_path / "saved").glob("*.safetensors"))


@pytest.mark.parametrize("method", METHODS)
def test_packed_rows_and_selected_logits_are_exact_or_ruled_out(method, bases):
    built, model, rate = build(method, bases["llama"])
    train(built, model, rate, steps=3)
    awake(model, False)
    ids = batch(2, 16, None)
    documents = [Document(row.numpy(), row.numpy(), "") for row in ids]
    if method in PROMPTS:
        assert compose([f"method={method}"]).tree["data"]["packing"] is False
    else:
        assert packing_error(model, documents, torch.device("cpu")) < (1e-4 if built.exact else 2e-2)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, 5:9] = True
    whole = logits(model, ids, built.virtual_tokens)[keep]
    shifted = torch.nn.functional.pad(keep, (built.virtual_tokens, 0), value=False)
    with rows_before_head(model, shifted):
        chosen = logits(model, ids)
    assert torch.allclose(chosen.flatten(0, 1), whole, atol=1e-4)


@pytest.mark.parametrize("method", sorted(MERGES))
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_merged_model_has_the_adapters_logits(method, architecture, bases):
    if (method, architecture) in CANNOT:
        pytest.skip("refused by a rule")
    built, model, rate = build(method, bases[architecture])
    train(built, model, rate, steps=5)
    ids = batch()
    with_adapter = logits(awake(model, False), ids)
    merged = copy.deepcopy(model).merge_and_unload()
    assert torch.allclose(logits(merged, ids), with_adapter, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("method", [m for m in METHODS if m not in BASE and m not in ("adalora",)])
def test_two_adapters_live_on_one_base(method, bases, tmp_path):
    built, model, rate = build(method, bases["llama"])
    train(built, model, rate, steps=3)
    ids = batch()
    first = logits(awake(model, False), ids, built.virtual_tokens)
    built.save(model, tmp_path / "one")
    both = reload(built, bases["llama"], tmp_path / "one")
    both.load_adapter(str(tmp_path / "one"), adapter_name="other")
    both.set_adapter("other")
    awake(both, False)
    assert torch.allclose(logits(both, ids, built.virtual_tokens), first, atol=2e-3, rtol=1e-3)
