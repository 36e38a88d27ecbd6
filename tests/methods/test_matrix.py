"""One matrix for all methods: each learns, moves only what it should, and comes back with plain PEFT.

A cell is (method, architecture); one trained model serves all its assertions. What upstream cannot do is refused by a
rule that carries the reason, and the matrix tries those cells too: a refusal that has become unnecessary fails.

Bounds. Learning is the fall of the loss of the same rows in evaluation, from before to after training. Measured over
all cells and two sets of CPU kernels, the loss after 50 steps was at most an eighth of the loss before; the bound is a
half, and a method that learns nothing is at 1. The last train loss against the first measures nothing: under GPT-2's
dropout a single loss of these rows before any training is between 0.60 and 0.73.
"""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers import ROUNDING, difference, make_method, same_bits
from tuneforge import rules
from tuneforge.callbacks.start_checks import packing_error
from tuneforge.compat import import_bitsandbytes, is_4bit
from tuneforge.compose import compose
from tuneforge.data.batches import Collate, Rows
from tuneforge.data.encode import Document
from tuneforge.front import front, groups
from tuneforge.objectives.causal_lm import rows_before_head
from tuneforge.objectives.parameters import parameter_groups

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

LEARNT = 0.5
# What PEFT cannot do.
CANNOT = {("loha", "gpt2"), ("lokr", "gpt2"), ("olora", "gpt2")}

# Learning rates at which fifty steps on a model of 64 units teach a fixed text; published ones are for wide models. At
# 1e-2 rsLoRA oscillates and ends by chance: at a loss of 0.006 under one set of CPU kernels, of 0.29 under another.
LORAS = ("lora", "dora", "rslora", "pissa", "olora", "eva", "corda", *QUANTISED)
RATES = {
    **dict.fromkeys(LORAS, 3e-3),
    "full": 3e-3,
    "freeze": 1e-2,
    "ia3": 5e-2,
    "vera": 5e-2,
    "fourierft": 1e-1,
    "prompt_tuning": 1e-1,
    "lora_plus": 1e-3,
}
SMALL = {
    "bottleneck_adapter": {"reduction_factor": 4},
    "fourierft": {"n_frequency": 200, "scaling": 50.0},
    "vera": {"r": 32},
}


@cache
def composed(method: str):
    """The method with a rank that suits a model of 64 units, where it has one."""
    ranked = "r" in compose([f"method={method}"]).tree["method"]
    return compose([f"method={method}", *(["method.r=4"] if ranked else [])])


def build(method: str, folder: Path):
    """(the method, its changed model in train mode, its learning rate)."""
    torch.manual_seed(0)
    node = {**composed(method).tree["method"], **SMALL.get(method, {})}
    node |= dict.fromkeys({"lora_dropout", "vera_dropout", "vblora_dropout", "dropout"} & node.keys(), 0.0)
    if method == "freeze":
        node["last_layers"] = 1
    built = make_method(node)
    base = load_base(built, folder)
    torch.manual_seed(1)
    if built.num_observed:
        rows = Rows([Document(row.numpy(), row.numpy(), "") for row in batch(16, 8, None)], 8, packing=False)
        built.observe(base, [Collate(0)([rows[i] for i in range(n, n + 8)]) for n in (0, 8)])
    model = built.apply(base)
    built.on_start(model, 50)
    awake(model)
    return built, model, RATES.get(method, 1e-2)


def load_base(built, folder: Path):
    """The base as transformers loads it alone, quantised where the method quantises."""
    quantised = built.quantization_config(torch.float32)
    extra = {} if quantised is None else {"quantization_config": quantised}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **extra)


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
    """Each architecture trained on all domains: adapters have something to steer, and that without dropout."""
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
        model.config.update({key: 0.0 for key in model.config.to_dict() if key.endswith("_pdrop")})
        made[name] = tmp_path_factory.mktemp("bases") / name
        model.save_pretrained(made[name])
    return made


def logits(model, ids, virtual: int = 0):
    with torch.no_grad():
        out = awake(model, False)(input_ids=ids, use_cache=False).logits.float()
    return out[:, virtual:]


def loss_of(model, ids, virtual: int = 0):
    out = model(input_ids=ids, use_cache=False).logits.float()[:, virtual:]
    return torch.nn.functional.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def eval_loss(model, virtual: int = 0) -> float:
    """Of the rows that are learnt."""
    with torch.no_grad():
        return float(loss_of(awake(model, False), batch(), virtual))


def train(built, model, rate, steps: int = 50) -> None:
    ids = batch()
    awake(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0, rate, built.learning_rate_scale), lr=rate)
    for step in range(1, steps + 1):
        loss = loss_of(model, ids, built.virtual_tokens)
        penalty = built.penalty(model)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        built.on_step_end(model, step)


def reload(built, folder, saved):
    """By transformers and PEFT alone, under another seed."""
    if built.trains_base:
        return AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)
    base = load_base(built, folder)
    torch.manual_seed(99)
    return PeftModel.from_pretrained(base, saved)


CELLS = [(m, a) for m in METHODS for a in ARCHITECTURES]


def test_the_matrix_covers_every_method():
    assert len(METHODS) == 24
    assert len(CELLS) == 48
    assert {m for m, _ in CANNOT} <= set(METHODS)


@pytest.mark.parametrize(("method", "architecture"), CELLS)
def test_what_upstream_cannot_do_is_refused_before_weights_load(method, architecture):
    found = composed(method)
    problems = rules.architecture_problems(found.config, {"model_type": architecture}, found.tree["method"])
    assert [p.code for p in problems] == (["method-not-for-model"] if (method, architecture) in CANNOT else [])


@pytest.mark.parametrize(("method", "architecture"), CELLS)
def test_a_method_learns_moves_what_it_should_and_comes_back(method, architecture, bases, tmp_path):
    folder = bases[architecture]
    if (method, architecture) in CANNOT:
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever upstream raises; none means the refusal can go
            train(*build(method, folder), steps=1)
        return
    built, model, rate = build(method, folder)
    virtual = built.virtual_tokens
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    start = eval_loss(model, virtual)
    train(built, model, rate)
    end = eval_loss(model, virtual)
    assert end < LEARNT * start, (start, end)

    # Only what should move has moved.
    own = dict(model.named_parameters())
    assert [n for n, before in frozen.items() if not same_bits(own[n], before)] == []
    check_saved(built, model, method, folder, tmp_path / "saved")
    check_packed_and_selected(built, model, method)
    if method in BASE:
        return
    # Switched off, the adapter leaves the untouched base.
    base = load_base(built, folder)
    assert end < 0.9 * eval_loss(base), (end, eval_loss(base))
    with model.disable_adapter():
        off = logits(model, batch())
    assert_close(off, logits(base, batch()), equal=not getattr(built, "rewrites_base", False))
    if method in MERGES:
        merged = copy.deepcopy(model).merge_and_unload()
        assert_close(logits(merged, batch()), logits(model, batch()))


def assert_close(one, two, *, equal: bool = True) -> None:
    """Of logits by two routes."""
    worst = difference(one, two)
    assert (worst < ROUNDING) == equal, worst


def check_saved(built, model, method, folder, saved):
    """Saved by the method and loaded, once or as a second adapter on the same base: the same logits."""
    built.save(model, saved)
    assert any(saved.glob("*.safetensors"))
    again, ours = reload(built, folder, saved), logits(model, batch(), built.virtual_tokens)
    assert_close(logits(again, batch(), built.virtual_tokens), ours)
    # AdaLoRA allows one adapter that trains.
    if not built.trains_base and method != "adalora":
        again.load_adapter(str(saved), adapter_name="other")
        again.set_adapter("other")
        assert_close(logits(again, batch(), built.virtual_tokens), ours)


def check_packed_and_selected(built, model, method):
    ids = batch(2, 16, None)
    documents = [Document(row.numpy(), row.numpy(), "") for row in ids]
    awake(model, False)
    if method in PROMPTS:
        assert composed(method).tree["data"]["packing"] is False
    else:
        assert packing_error(model, documents, torch.device("cpu")) < (1e-4 if built.exact else 2e-2)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    keep[:, 5:9] = True
    whole = logits(model, ids, built.virtual_tokens)[keep]
    shifted = torch.nn.functional.pad(keep, (built.virtual_tokens, 0), value=False)
    with rows_before_head(model, shifted):
        chosen = logits(model, ids)
    assert_close(chosen.flatten(0, 1), whole)
