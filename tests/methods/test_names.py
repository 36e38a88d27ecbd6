"""Every option that names modules or layers is checked against the model before its weights load."""

import dataclasses
import functools
import re

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from helpers import SHORT, make_method
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.plugins.discovery import core_options
from tuneforge.schema.signature import read_signature
from tuneforge.settle import settle_length

LLAMA = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def fresh():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **LLAMA))


@functools.cache
def option(name):
    return compose([f"method={name}", "task_recipe.dropout=0"]).tree["method"]


def checked(name, options):
    """Check the options on a model; the one problem they have, or None."""
    node = option(name)
    built = make_method({**node, **({"r": 2} if "r" in node else {}), **options})
    try:
        built.check(fresh())
    except TuneforgeError as error:
        (problem,) = error.problems
        return problem
    return None


MISSPELT = {
    "target_modules": [["q_proj", "v_porj"], ["v_porj"], []],
    "modules_to_save": [["lm_haed"], ["embed_tokens", "nrom"]],
    "layers_to_transform": [[2], [-1], []],
    "rank_pattern": [{"q_porj": 1}, {"q_proj": 1, "layers.7.q_proj": 1}, {"(": 1}],
    "alpha_pattern": [{"q_porj": 4}, {"lm_head": 4}],
    "target_parameters": [["experts.down_proj"]],
    "feedforward_modules": [["down_porj"]],
    "last_layers": [3],
    "pattern": ["norn", "("],
}
NOT_NAMES = {"rank_pattern": "eva"}


def cases():
    found = []
    for name in sorted(core_options()["method"]):
        target = option(name)["_target_"]
        for key in read_signature(target).fields:
            if (
                key in MISSPELT
                and NOT_NAMES.get(key) != name
                and not (key == "target_parameters" and name in ("eva", "corda"))
            ):
                found += [(name, key, value) for value in MISSPELT[key]]
    return found


CASES = cases()


def test_there_are_as_many_cases_as_methods_and_options():
    assert len(CASES) > 150
    assert {key for _, key, _ in CASES} == {*MISSPELT}


def test_what_matches_nothing_is_refused_before_weights_load():
    for name, key, value in CASES:
        problem = checked(name, {key: value})
        assert problem is not None, (name, key, value)
        bad = "(" in str(value)
        assert problem.code in (("bad-pattern",) if bad else ("unknown-module", "no-such-layer")), (name, key, problem)
        assert not bad or "'(' is no" in problem.message, problem
        assert problem.path.startswith(f"method.{key}"), (name, key, value, problem)
        assert problem.fix, (name, key, value)
        for typed, meant in (("porj", "proj"), ("haed", "head"), ("nrom", "norm")):
            if typed in str(value):
                assert "did you mean" in problem.fix, problem
                assert meant in problem.fix, problem


RIGHT = {
    "target_modules": ["q_proj", "o_proj"],
    "modules_to_save": ["lm_head"],
    "layers_to_transform": [1],
    "rank_pattern": {"q_proj": 1, r"layers\.1\..*up_proj": 1},
    "alpha_pattern": {"down_proj": 4},
    "feedforward_modules": ["down_proj"],
    "last_layers": 1,
    "pattern": "norm",
}


def test_what_is_there_is_taken():
    for name, key in dict.fromkeys((name, key) for name, key, _ in CASES):
        if key in RIGHT:
            assert checked(name, {key: RIGHT[key]}) is None, (name, key)


@pytest.mark.parametrize(
    ("options", "path", "says"),
    [
        ({"rank_pattern": {"q_proj": 1}, "target_modules": ["v_proj"]}, "method.rank_pattern", "'q_proj' matches no"),
        ({"rank_pattern": {"q_proj": 1}, "modules_to_save": ["q_proj"]}, "method.rank_pattern", "'q_proj' matches no"),
        ({"alpha_pattern": {r"layers\.0\..*": 1}, "layers_to_transform": [1]}, "method.alpha_pattern", "matches no"),
        ({"rank_pattern": {".*_proj": 1, "q_proj": 2}}, "method.rank_pattern", "'.*_proj' stands before it"),
        ({"rank_pattern": {"down_proj": 70}}, "method.rank_pattern.down_proj", "64 wide"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]}, "method.target_modules", "leaves no module"),
        ({"target_modules": "("}, "method.target_modules", "is no regular expression"),
        ({"target_modules": "q_proj"}, "method.target_modules", "is read as a pattern"),
        ({"target_modules": "all_linear"}, "method.target_modules", "matches no module"),
        ({"target_modules": ["all-linear"]}, "method.target_modules", "matches no module"),
        (
            {"target_modules": ["embed_tokens", "q_proj"], "layers_to_transform": [1]},
            "method.target_modules",
            "'embed_",
        ),
        ({"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["v_proj"]}, "method.target_modules", "'v_proj'"),
        ({"init_lora_weights": "orthogonal", "r": 3}, "method.r", "halves each rank"),
        ({"init_lora_weights": "orthogonal", "rank_pattern": {"q_proj": 3}}, "method.rank_pattern.q_proj", "halves"),
        ({"target_modules": ["norm", "q_proj"]}, "method", "LlamaRMSNorm"),
        ({"target_modules": ["mlp"]}, "method", "LlamaMLP"),
    ],
)
def test_what_has_no_effect_or_no_adapter_is_refused(options, path, says):
    problem = checked("lora", options)
    assert problem is not None
    assert problem.path == path
    assert says in problem.message


def test_what_other_methods_cannot_adapt_is_refused():
    for name, target in (("ia3", "mlp"), ("loha", "embed_tokens"), ("vera", "mlp"), ("bottleneck_adapter", "lm_head")):
        problem = checked(name, {"target_modules": ["o_proj", target]})
        assert problem is not None, name
        assert problem.code == "adapter-does-not-fit", problem
    assert checked("ia3", {"target_modules": ["o_proj", "lm_head"]}) is None


@pytest.mark.parametrize(
    ("name", "options", "path", "says"),
    [
        (
            "ia3",
            {"target_modules": ["q_proj"], "feedforward_modules": ["down_proj"]},
            "feedforward_modules",
            "does not",
        ),
        ("adalora", {"r": 16}, "init_r", "pruned from it to method.r=16"),
        ("adalora", {"warmup": 0.5, "settled": 0.5}, "settled", "no step is left"),
        ("vblora", {"topk": 300}, "topk", "method.num_vectors=256"),
        *(
            ("bottleneck_adapter", {"target_modules": names}, "target_modules", says)
            for names, says in (
                (["act_fn"], "has no weights"),
                (["layers"], "no single module"),
                (["model"], "no single module"),
                (["layers.0", "self_attn"], "holds model.layers.0.self_attn"),
            )
        ),
    ],
)
def test_options_that_would_fail_in_training_are_refused(name, options, path, says):
    problem = checked(name, options)
    assert problem is not None
    assert problem.path == f"method.{path}"
    assert says in problem.message
    # Overrides that the advice gives make it right.
    advised = dict(re.findall(r"method\.(\w+)=([\w.]+)", problem.fix))
    if advised:
        assert checked(name, options | {k: yaml.safe_load(v) for k, v in advised.items()}) is None


def test_a_row_and_virtual_tokens_share_the_models_positions():
    for name in ("prompt_tuning", "p_tuning", "prefix_tuning"):
        taken = make_method({**option(name), "num_virtual_tokens": 20}).positions
        assert settle_length("auto", 64, 1024, taken) == 44
        assert settle_length(44, 64, 1024, taken) == 44
        with pytest.raises(TuneforgeError, match="of which the method's virtual tokens take 20") as caught:
            settle_length(60, 64, 1024, taken)
        assert caught.value.problems[0].fix.startswith("set data.max_length=44")
    with pytest.raises(TuneforgeError, match="take 64"):
        settle_length("auto", 64, 1024, 64)
    assert make_method(option("lora")).positions == 0


def test_a_module_to_save_is_the_one_that_was_named():
    """PEFT compares ends of names without regard to dots: `norm` would train every layer's norms too."""
    node = compose(["method=lora", "method.r=2", "method.modules_to_save=[norm]"]).tree["method"]
    model = fresh()
    config = make_method(node).peft_config(model)
    assert config.modules_to_save == ["model.norm"]
    node["modules_to_save"] = ["lm_head"]
    assert make_method(node).peft_config(model).modules_to_save == ["lm_head"]


def test_it_is_said_by_a_run_before_weights_load(refused, model_folders, tmp_path, monkeypatch):
    from tuneforge import models

    monkeypatch.setattr(models, "load_model", None)
    run = [
        *SHORT,
        "model=hf",
        f"model.path={model_folders['llama']}",
        f"hydra.run.dir={tmp_path / 'run'}",
        "method.r=4",
    ]
    for options in (["method.rank_pattern={q_porj: 4}"], ["method.modules_to_save=[lm_haed]"]):
        said = refused(*run, *options)
        assert "did you mean" in said
    assert not (tmp_path / "run").exists()


def test_the_methods_options_are_those_of_its_class():
    """What the cases are made from is what the classes have."""
    from tuneforge.methods.lora import Lora

    assert {f.name for f in dataclasses.fields(Lora)} <= set(read_signature("tuneforge.methods.lora.Lora").fields)
