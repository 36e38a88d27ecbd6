"""Every method under a classification head, on two decoders and an encoder: it learns and comes back with plain PEFT.

The encoder is a masked language model without a pooler: what is drawn anew beside the head is trained and saved too.
Learning is measured as in test_matrix.py, which derives the bound.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from helpers import ROUNDING, difference, make_method, same_bits
from tuneforge import rules
from tuneforge.adapters import base_model
from tuneforge.compat import import_bitsandbytes, is_4bit
from tuneforge.compose import compose
from tuneforge.data.labels import Labels
from tuneforge.front import front, groups
from tuneforge.heads import head_modules
from tuneforge.models import classifier_config, load_classifier
from tuneforge.objectives.classification import last_before_head
from tuneforge.objectives.parameters import parameter_groups
from tuneforge.schema.model import Model

import_bitsandbytes()

# peft 0.21.2 warns of what AdaLoRA has pruned, and of the ranks in its own format; both load as they should.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Adapter 'default'"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys"),
]

with front() as loader:
    # Those that start from rows of next tokens are refused (tests/compose/test_rules.py).
    METHODS = [m for m in groups(loader)["method"] if m not in ("eva", "corda")]
CELLS = [(m, a) for m in METHODS for a in ("llama", "gpt2", "bert")]
# What a decoder does under a method is in the matrix of language models too: its head is the soak's.
MARKS = {"bert": [], "llama": [pytest.mark.soak], "gpt2": [pytest.mark.soak_full]}
MARKED = [pytest.param(m, a, marks=MARKS[a]) for m, a in CELLS]
# What PEFT cannot do.
CANNOT = {("loha", "gpt2"), ("lokr", "gpt2"), ("olora", "gpt2")}

LEARNT = 0.5
RATES = {"full": 3e-3, "lora_plus": 1e-3, "prompt_tuning": 5e-3}
# A prompt learns slowly: at a rate that fifty steps would do with, the loss goes up and down.
STEPS = {"prompt_tuning": 100}
SMALL = {"fourierft": {"n_frequency": 200, "scaling": 50.0}, "vera": {"r": 32}}
LABELS = Labels(("four", "five", "six"), multi=False)
PAD = 0


@cache
def composed(method: str):
    small = ["method.r=4"] if method not in ("vera",) and "r" in compose([f"method={method}"]).tree["method"] else []
    return compose(["task_recipe=classification", f"method={method}", *small])


def build(method: str, folder: Path):
    """(the method, its changed classifier in train mode, the config for a plain one)."""
    node = {**composed(method).tree["method"], **SMALL.get(method, {})}
    node |= {k: 0.0 for k in ("lora_dropout", "vera_dropout") if k in node}
    if method == "freeze":
        node["last_layers"] = 1
    built = make_method(node)
    config = classifier_config(AutoConfig.from_pretrained(folder), LABELS, PAD)
    torch.manual_seed(0)
    model = Model(name="tested", path=str(folder))
    tuned = built.apply(load_classifier(model, config, torch.float32, built.quantization_config(torch.float32)))
    built.on_start(tuned, 50)
    return built, awake(tuned), config


def awake(model, training: bool = True):
    model.train(training)
    for module in filter(is_4bit, model.modules()):
        module.training = True
    return model


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and class of texts of four to six tokens: the class is the length, so that padding must not matter."""
    generator = torch.Generator().manual_seed(3)
    ids, mask, labels = torch.full((12, 8), PAD), torch.zeros(12, 8, dtype=torch.long), torch.arange(12) % 3
    for row, label in enumerate(labels.tolist()):
        ids[row, : 4 + label] = torch.randint(10, 60, (4 + label,), generator=generator)
        mask[row, : 4 + label] = 1
    return ids, mask, labels


def scores(model, ids, mask, prompted: bool):
    if not prompted:
        return model(input_ids=ids, attention_mask=mask).logits.float()
    with last_before_head(model, mask):
        return model(input_ids=ids, attention_mask=mask).logits.float()


def eval_loss(built, model) -> float:
    """Of the texts that are learnt."""
    ids, mask, labels = texts()
    with torch.no_grad():
        found = scores(awake(model, False), ids, mask, bool(built.virtual_tokens))
    return float(torch.nn.functional.cross_entropy(found, labels))


def train(built, model, rate: float, steps: int) -> None:
    ids, mask, labels = texts()
    awake(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0, rate, built.learning_rate_scale), lr=rate)
    for step in range(1, steps + 1):
        loss = torch.nn.functional.cross_entropy(scores(model, ids, mask, bool(built.virtual_tokens)), labels)
        penalty = built.penalty(model)
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()
        optimizer.step()
        built.on_step_end(model, step)


def test_the_matrix_covers_every_method():
    assert len(METHODS) == 22
    assert len(CELLS) == 66


@pytest.mark.parametrize(("method", "architecture"), CELLS)
def test_what_upstream_cannot_do_is_refused_before_weights_load(method, architecture):
    config = composed(method)
    problems = rules.architecture_problems(config.config, {"model_type": architecture}, config.tree["method"])
    assert [p.code for p in problems] == (["method-not-for-model"] if (method, architecture) in CANNOT else [])


@pytest.mark.parametrize(("method", "architecture"), MARKED)
def test_a_classifier_learns_moves_what_it_should_and_comes_back(method, architecture, model_folders, tmp_path):
    folder = model_folders[architecture]
    if (method, architecture) in CANNOT:
        with pytest.raises(Exception):  # noqa: B017, PT011  whatever upstream raises; none means the refusal can go
            train(*build(method, folder)[:2], 1e-2, steps=1)
        return
    built, model, config = build(method, folder)
    heads = head_modules(base_model(model))
    assert heads == {"llama": ["score"], "gpt2": ["score"], "bert": ["classifier", "bert.pooler"]}[architecture]
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(any(f"{head}." in n for n in trained) for head in heads)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}

    start = eval_loss(built, model)
    train(built, model, RATES.get(method, 1e-2), STEPS.get(method, 50))
    end = eval_loss(built, model)
    assert end < LEARNT * start, (start, end)
    own = dict(model.named_parameters())
    assert [n for n, before in frozen.items() if not same_bits(own[n], before)] == []

    built.save(model, tmp_path / "saved")
    again = reload(built, folder, config, tmp_path / "saved")
    ids, mask, _ = texts()
    with torch.no_grad():
        ours = scores(awake(model, False), ids, mask, bool(built.virtual_tokens))
        # Alone and without padding, as at inference; plain PEFT knows no head of ours.
        alone = [again(input_ids=row[None, : n.sum()]).logits.float() for row, n in zip(ids, mask, strict=True)]
    assert difference(ours, torch.cat(alone)) < ROUNDING


def reload(built, folder, config, saved):
    torch.manual_seed(99)
    if built.trains_base:
        return AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.float32).eval()
    quantised = built.quantization_config(torch.float32)
    extra = {}
    if quantised is not None:
        quantised.llm_int8_skip_modules = head_modules(
            load_classifier(Model(name="", path=str(folder)), config, torch.float32)
        )
        extra["quantization_config"] = quantised
    plain = AutoModelForSequenceClassification.from_pretrained(folder, config=config, dtype=torch.float32, **extra)
    return awake(PeftModel.from_pretrained(plain, saved), False)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_virtual_tokens_without_our_pooling_would_read_padding(architecture, model_folders):
    _, model, _ = build("prompt_tuning", model_folders[architecture])
    ids, mask, _ = texts()
    with torch.no_grad():
        ours, theirs = (scores(awake(model, False), ids, mask, prompted) for prompted in (True, False))
    assert not torch.allclose(ours, theirs, atol=1e-3)
