"""Architectures unlike Llama: what an adapter attaches to, which attention runs, and that what is advised works.

Models are built on torch's meta device, where only their modules exist; a few are trained for a step.
"""

import functools
import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helpers import SHORT, make_method, make_tokenizer
from tuneforge.boundary import library_errors_explained
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.methods.modules import beyond_text, fused_experts, linear_modules, routers, shortest_ends
from tuneforge.model_checks import attention_of, rotary_limits, without_weights
from tuneforge.schema.model import Model

SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MLA = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "qwen2_moe": {**SIZES, **HEADS, **MOE, "shared_expert_intermediate_size": 48},
    # As wide inside the shared expert as there are experts: no router.
    "qwen3_next": {**SIZES, **HEADS, **MOE, "shared_expert_intermediate_size": 4},
    "llama4_text": {**SIZES, **HEADS, "num_local_experts": 4, "intermediate_size_mlp": 96},
    "mixtral": {**SIZES, **HEADS, "num_local_experts": 4},
    "olmoe": {**SIZES, **HEADS, "num_experts": 4},
    "gpt_oss": {**SIZES, **HEADS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "phimoe": {**SIZES, **HEADS, "num_local_experts": 4},
    "deepseek_v2": {**SIZES, **HEADS, **MLA, "n_routed_experts": 4, "moe_intermediate_size": 32, "n_group": 1},
    "afmoe": {**SIZES, **HEADS, **MOE},
    # Routers of several layers, and as many layers as experts.
    "zaya": {**SIZES, **HEADS, "num_experts": 2, "router_hidden_size": 16, "num_attention_heads": 4},
    "rwkv": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "context_length": 64},
    "gemma3": {
        "text_config": {**SIZES, **HEADS, "model_type": "gemma3_text"},
        "vision_config": {**VISION, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
    },
    "fuyu": {"text_config": {**SIZES, **HEADS, "model_type": "persimmon"}, "image_size": 28, "patch_size": 14},
    "gemma2": {**SIZES, **HEADS},
    "bloom": {"vocab_size": 512, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "mpt": {"vocab_size": 512, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "mamba": {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2},
    "phi3": {
        **SIZES,
        **HEADS,
        "pad_token_id": 0,
        "original_max_position_embeddings": 16,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [8.0] * 8,
            "original_max_position_embeddings": 16,
        },
    },
}


def config_of(kind):
    return AutoConfig.for_model(kind, **CONFIGS[kind])


@pytest.fixture(scope="module")
def bare():
    """The models without weights."""
    built = {}
    with torch.device("meta"):
        for kind in CONFIGS:
            built[kind] = AutoModelForCausalLM.from_config(config_of(kind))
    return built


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function that saves a random model of a kind, with a tokenizer."""
    made = {}

    def make_folder(kind):
        if kind not in made:
            torch.manual_seed(0)
            made[kind] = tmp_path_factory.mktemp("architectures") / kind
            model = AutoModelForCausalLM.from_config(config_of(kind))
            # So that what a model attends to shows in its logits.
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.data *= 3
            model.save_pretrained(made[kind])
            make_tokenizer("llama").save_pretrained(made[kind])
        return made[kind]

    return make_folder


@functools.cache
def option(name):
    return compose([f"method={name}", "task_recipe.dropout=0"]).tree["method"]


def method_of(name="lora", **options):
    node = option(name)
    return make_method({**node, **({"r": 2} if "r" in node else {}), **options})


def fresh(kind):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(kind))


ROUTERS = {
    "qwen2_moe": {"shared_expert_gate"},
    "qwen3_next": {"shared_expert_gate"},
    "llama4_text": {"router"},
    "phimoe": {"router"},
    "afmoe": {"gate"},
    "zaya": {"down_proj", "fc1", "fc2", "out_proj"},
}


def test_routers_and_gates_are_found_by_structure(bare):
    found = {kind: {n.rpartition(".")[2] for n in routers(model)} for kind, model in bare.items()}
    assert {kind: names for kind, names in found.items() if names} == ROUTERS
    assert "model.layers.0.mlp.shared_expert.gate_proj" in linear_modules(bare["qwen3_next"])


def test_only_experts_are_fused_experts(bare):
    mixtures = {kind for kind, model in bare.items() if fused_experts(model)}
    assert mixtures == {*ROUTERS, "mixtral", "olmoe", "gpt_oss", "deepseek_v2"}
    # These have parameters of three dimensions too.
    for kind in ("rwkv", "gemma3"):
        assert any(p.ndim == 3 for p in bare[kind].parameters())


@pytest.mark.parametrize("kind", CONFIGS)
def test_lora_with_defaults_fits_every_architecture_and_leaves_routers(kind):
    model = fresh(kind)
    away = {*routers(model), *beyond_text(model)}
    built = method_of()
    built.check(model)
    adapted = {n.partition(".lora_")[0] for n, p in model.named_parameters() if ".lora_" in n}
    assert adapted
    assert not adapted & away


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("qwen2_moe", "shared_expert_gate", "router or gate"),
        ("llama4_text", "router", "router or gate"),
        ("gemma3", "fc1", "where text does not pass"),
        ("gemma3", "q_porj", "did you mean 'q_proj'"),
    ],
)
def test_what_cannot_be_a_target_is_refused_with_the_models_own_names(bare, kind, name, says):
    with pytest.raises(TuneforgeError) as caught:
        method_of(target_modules=["v_proj", name]).peft_config(bare[kind])
    (problem,) = caught.value.problems
    assert (problem.code, problem.path) == ("unknown-module", "method.target_modules")
    assert says in str(problem)
    assert "q_proj" in problem.fix
    assert "base_layer" not in str(problem)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lora", {}),
        ("lora", {"target_modules": ["q_proj", "v_proj"]}),
        ("lora", {"target_modules": ".*(q_proj|fc1)"}),
        ("lora", {"layers_to_transform": [1]}),
        ("loha", {}),
        ("ia3", {}),
        ("ia3", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
        ("bottleneck_adapter", {}),
        ("bottleneck_adapter", {"target_modules": ["o_proj"]}),
        ("freeze", {"last_layers": 1}),
        ("freeze", {"pattern": "layernorm"}),
        ("full", {}),
    ],
)
def test_of_a_multimodal_model_the_language_part_alone_is_trained(name, options):
    model = fresh("gemma3")
    away = beyond_text(model)
    assert any("vision_tower" in n for n in away)
    assert any("multi_modal_projector" in n for n in away)
    tuned = method_of(name, **options).apply(model)
    trained = {n.removeprefix("base_model.model.") for n, p in tuned.named_parameters() if p.requires_grad}
    assert trained
    assert not [n for n in trained if "vision_tower" in n or "multi_modal_projector" in n]
    if options.get("layers_to_transform") == [1] or (name == "freeze" and "last_layers" in options):
        assert all(".layers.1." in n for n in trained)


@pytest.mark.parametrize("name", ["lora", "full", "freeze", "bottleneck_adapter"])
def test_each_trained_weight_of_a_multimodal_model_gets_a_gradient(name):
    """Else DDP ends a run on several processes: it waits for every gradient."""
    torch.manual_seed(0)
    tuned = method_of(name).apply(AutoModelForCausalLM.from_config(config_of("gemma3"))).train()
    ids = torch.arange(3, 35).repeat(2, 1)
    positions = torch.arange(32).repeat(2, 1)
    tuned(input_ids=ids, position_ids=positions, use_cache=False).logits.square().mean().backward()
    assert not [n for n, p in tuned.named_parameters() if p.requires_grad and p.grad is None]


def test_a_linear_layer_for_images_is_left_out_and_a_classifiers_head_is_not():
    model = fresh("fuyu")
    assert beyond_text(model) == {"model.vision_embed_tokens"}
    method_of().check(model)
    classifier = without_weights(Model(name="x", path="gemma3"), config_of("gemma3"), classifies=True)
    tuned = method_of("full").apply(classifier)
    assert tuned.score.weight.requires_grad
    assert not next(tuned.model.vision_tower.parameters()).requires_grad


def test_weights_without_a_gradient_are_told_in_our_words():
    error = RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one.")
    with pytest.raises(TuneforgeError) as caught, library_errors_explained(compose([]).config):
        raise error
    (problem,) = caught.value.problems
    assert problem.code == "unused-weights"
    assert "trainer.devices=1" in problem.fix


class Wrapped(torch.nn.Module):
    """A linear layer inside of a module that does more, as Gemma 4 clips its inputs."""

    def __init__(self, inner):
        super().__init__()
        self.linear = inner

    def forward(self, x):
        return self.linear(x)


def test_wrapped_linear_layers_are_told_by_the_models_own_names(bare):
    model = fresh("gemma2")
    for layer in model.model.layers:
        layer.self_attn.q_proj = Wrapped(layer.self_attn.q_proj)
    assert shortest_ends(linear_modules(model), (n for n, _ in model.named_modules())) == sorted(
        ["down_proj", "gate_proj", "k_proj", "linear", "o_proj", "up_proj", "v_proj"]
    )
    with pytest.raises(TuneforgeError) as caught:
        method_of(target_modules=["q_proj"]).check(model)
    (problem,) = caught.value.problems
    assert problem.code == "adapter-does-not-fit"
    # The whole message, and names from before PEFT wrapped anything.
    assert "Wrapped" in problem.message
    assert "supported" in problem.message
    assert problem.fix == ("linear modules here: down_proj, gate_proj, k_proj, o_proj, q_proj.linear, up_proj, v_proj")
    # And the advice works.
    model = fresh("gemma2")
    for layer in model.model.layers:
        layer.self_attn.q_proj = Wrapped(layer.self_attn.q_proj)
    method_of(target_modules=["q_proj.linear"]).check(model)


# ---- attention


@pytest.mark.parametrize("kind", ["gemma2", "gpt_oss", "bloom", "mpt", "mamba", "rwkv", "gemma3", "mixtral"])
@pytest.mark.parametrize("wanted", ["auto", "sdpa", "flex_attention"])
def test_the_attention_that_runs_is_chosen_or_advised(kind, wanted):
    config = config_of(kind)
    model = Model(name="x", path=kind, attn_implementation=wanted)
    try:
        built = without_weights(model, config, classifies=False)
    except TuneforgeError as error:
        assert wanted != "auto"
        (problem,) = error.problems
        assert problem.code == "attention-unavailable"
        assert problem.fix.startswith("set model.attn_implementation=auto")
        chosen = attention_of(without_weights(Model(name="x", path=kind), config, classifies=False))
        assert f"which is {chosen}" in problem.fix
    else:
        own = AutoModelForCausalLM._model_mapping[type(config)]
        assert built.config._attn_implementation in (wanted, "sdpa" if own._supports_sdpa else "eager")
    # What was asked of the config is not left in it.
    assert config._attn_implementation_internal is None


def short_config(kind):
    """The default config of an architecture with two layers in each of its stacks."""
    config = AutoConfig.for_model(kind)
    inner = [getattr(config, name, None) for name in ("vision_config", "audio_config")]
    for part in (config, config.get_text_config(), *(p for p in inner if p is not None)):
        for name in ("num_hidden_layers", "n_layer", "num_layers", "depth"):
            if isinstance(getattr(part, name, None), int):
                setattr(part, name, 2)
        for name in ("layer_types", "mlp_layer_types", "layers_block_type"):
            types = getattr(part, name, None)
            if isinstance(types, list):
                setattr(part, name, [types[0], types[-1]])
    return config


@pytest.mark.soak
def test_every_causal_architecture_of_transformers_takes_the_defaults():
    fits, unbuilt = [], []
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = short_config(kind)
            model = without_weights(Model(name="x", path=kind), config, classifies=False)
        except Exception as error:
            unbuilt.append((kind, error))
            continue
        method_of(r=1).check(model)
        fits.append(kind)
    assert len(fits) > 150, unbuilt
    assert len(unbuilt) < 30, unbuilt


@pytest.mark.parametrize(("kind", "attention"), [("deberta-v2", "eager"), ("bert", "sdpa")])
def test_a_classifiers_attention_is_chosen_too(kind, attention):
    sizes = {**SIZES, "type_vocab_size": 2, "max_position_embeddings": 64}
    built = without_weights(Model(name="x", path=kind), AutoConfig.for_model(kind, **sizes), classifies=True)
    assert attention_of(built) == attention


# ---- runs

TINY = (*SHORT, "trainer.max_steps=1", "data.max_rows=24", "data.split.max_eval_rows=4", "samples.num=0")
RUN = (*TINY, "model=hf", "method.r=2", "batch.per_device=1", "callbacks=none", "logger=none", "task_recipe.dropout=0")


@pytest.mark.parametrize("kind", ["gemma2", "gemma3"])
def test_with_defaults_it_trains(command, folder_of, kind):
    ran = command(*RUN, f"model.path={folder_of(kind)}")
    assert ran.code == 0, ran.err
    assert ("eager" in ran.out) == (kind == "gemma2")


@pytest.mark.parametrize("kind", ["bloom", "mamba", "mpt"])
def test_without_positions_packing_is_refused_and_the_advice_trains(command, folder_of, kind):
    refused = command(*RUN, f"model.path={folder_of(kind)}")
    assert refused.code == 2, refused.err
    assert "data.packing=false" in refused.err
    assert not refused.folder.exists()
    ran = command(*RUN, f"model.path={folder_of(kind)}", "data.packing=false")
    assert ran.code == 0, ran.err


def test_a_rotary_embedding_that_changes_with_the_longest_document_is_refused_and_the_advice_trains(
    command, folder_of, tmp_path
):
    rows = tmp_path / "rows.jsonl"
    texts = ["a dog", "the fox", "jumps over", *["the quick brown fox jumps over the lazy dog " * 4] * 5]
    rows.write_text("".join(json.dumps({"text": f"{t} {n}"}) + "\n" for n, t in enumerate(texts * 3)))
    run = [
        *(*RUN, f"model.path={folder_of('phi3')}", "data=file", f"data.path={rows}", "data.format=text"),
        *("data.train_on=all", "data.max_length=128", "batch.effective=2"),
    ]
    for more in ([], ["data.packing=false", "batch.per_device=2"]):
        refused = command(*run, *more)
        assert refused.code == 2, refused.err
        assert "longrope" in refused.err
        assert "data.max_length=16, or data.packing=false batch.per_device=1" in refused.err
    for more in (["data.max_length=16"], ["data.packing=false"]):
        ran = command(*run, *more)
        assert ran.code == 0, ran.err


def test_rotary_embeddings_that_depend_on_the_batch_are_known_by_their_config():
    assert rotary_limits(config_of("phi3")) == [("longrope", 16)]
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    assert rotary_limits(AutoConfig.for_model("llama", **SIZES, **HEADS, rope_parameters=scaled)) == [("dynamic", 64)]
    assert rotary_limits(config_of("gemma3")) == []
    assert rotary_limits(config_of("bloom")) == []
