"""A LoRA on a rewritten base is saved so that, loaded on the original base, it is the tuned model."""

import copy
import functools

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from helpers import documents, make_method
from tuneforge.compose import compose
from tuneforge.data.batches import Collate, Rows
from tuneforge.errors import TuneforgeError
from tuneforge.vocabulary import ADDED

OPTIONS = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.*": 6}},
    "alpha_pattern": {"alpha_pattern": {"down_proj": 3}},
    "scaled": {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}},
    "all": {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7}},
    "scaled_alike": {"use_rslora": True, "alpha_pattern": {"layers.0.mlp.up_proj": 3}},
    "saved": {"modules_to_save": ["lm_head", "norm"]},
    "dora_saved": {"use_dora": True, "modules_to_save": ["input_layernorm"]},
    "layers": {"layers_to_transform": [1]},
    "pattern": {"target_modules": r".*layers\.0.*_proj"},
    "new_tokens": {},
    "bias": {"bias": "lora_only"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
}
OF_OTHERS = ("dora", "all", "saved", "new_tokens")
CASES = [("pissa", name) for name in OPTIONS if name != "head"]
CASES += [(method, name) for method in ("olora", "corda") for name in OF_OTHERS]
CASES += [("eva", name) for name in ("dora", "scaled_alike", "saved", "new_tokens")]
CASES += [("corda", "rank_pattern"), ("lora", "all"), ("eva", "head"), ("corda", "head")]


@pytest.fixture(scope="module")
def bases(model_folders):
    """The untied and the tied base, loaded once."""
    return {n: AutoModelForCausalLM.from_pretrained(model_folders[n], dtype=torch.float32) for n in ("llama", "gemma")}


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@functools.cache
def option(name):
    return compose([f"method={name}", "method.r=4", "task_recipe.dropout=0"]).tree["method"]


def method_of(name, options):
    return make_method({**option(name), **options})


def trained(base, built, new_tokens=(), steps=3):
    """The model after a few steps on random tokens."""
    torch.manual_seed(1)
    base = copy.deepcopy(base)
    if new_tokens:
        setattr(base, ADDED, list(new_tokens))
    if built.num_observed:
        rows = Rows(documents(12), 64, packing=False)
        built.observe(base, [Collate(0)([rows[i] for i in range(j, j + 4)]) for j in range(0, len(rows) - 3, 4)])
    model = built.apply(base)
    ids = torch.arange(3, 35).repeat(2, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(steps):
        model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, ids


@pytest.mark.parametrize(("method", "name"), CASES)
def test_saved_and_loaded_it_is_the_tuned_model(bases, method, name, tmp_path):
    built, base = method_of(method, OPTIONS[name]), bases["llama"]
    model, ids = trained(base, built, new_tokens=(5, 6) if name == "new_tokens" else ())
    ours = logits(model, ids)
    assert not torch.allclose(ours, logits(base, ids), atol=1e-3)
    built.save(model, tmp_path / "saved")
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "saved")
    assert torch.allclose(logits(again, ids), ours, atol=2e-5)
    if name != "bias":
        # The other route: merged into the weights.
        assert torch.allclose(logits(again.merge_and_unload(), ids), ours, atol=2e-5)


def test_eva_takes_no_ranks_of_single_modules():
    with pytest.raises(TuneforgeError, match=r"method.rank_pattern.*must be null"):
        compose(["method=eva", "method.rank_pattern={q_proj: 2}"])


TIED = {
    "lm_head": {"target_modules": ["q_proj", "lm_head"]},
    "embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "saved_head": {"modules_to_save": ["lm_head"]},
    "saved_embedding": {"modules_to_save": ["embed_tokens"]},
    "saved_both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "pattern": {"target_modules": ".*(q_proj|lm_head)"},
}


def without_weights(base):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(base.config)


# Loading the adapter, PEFT warns of what the run has warned of (peft issue 2777).
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("name", TIED)
def test_an_adapter_on_tied_weights_is_warned_of_and_loads_as_it_was(bases, name, tmp_path, capsys):
    built, base = method_of("lora", TIED[name]), bases["gemma"]
    built.check(without_weights(base))
    assert "share one weight in this model" in capsys.readouterr().out
    model, ids = trained(base, built)
    built.save(model, tmp_path / "saved")
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "saved")
    assert torch.allclose(logits(again, ids), logits(model, ids), atol=2e-5)


def test_untied_weights_are_not_warned_of(bases, capsys):
    method_of("lora", TIED["lm_head"]).check(without_weights(bases["llama"]))
    method_of("lora", {}).check(without_weights(bases["gemma"]))
    assert "share one weight" not in capsys.readouterr().out
