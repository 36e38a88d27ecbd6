"""Bottleneck adapters: where they stand in each kind of model, and what of PEFT's frame holds for them."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from helpers import ROUNDING, difference, make_method
from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.methods.bottleneck_adapter import sublayer_ends
from tuneforge.plan.shape import ModelShape, Trainable

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENDS = {
    "llama": (WIDE, "self_attn.o_proj", "mlp.down_proj"),
    "phi3": (WIDE, "self_attn.o_proj", "mlp.down_proj"),
    "gemma3_text": (WIDE | {"head_dim": 8}, "self_attn.o_proj", "mlp.down_proj"),
    "opt": (
        {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
        *("self_attn.out_proj", "fc2"),
    ),
    "gpt_neox": ({**SIZES, "intermediate_size": 48}, "attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": ({"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}, "attn.c_proj", "mlp.c_proj"),
    "bert": ({**SIZES, "intermediate_size": 48}, "attention.output.dense", "output.dense"),
    "mixtral": ({**WIDE, "num_local_experts": 4}, "self_attn.o_proj", "mlp"),
}


def build(kind: str):
    config = AutoConfig.for_model(kind, **IDS, **ENDS[kind][0])
    torch.manual_seed(0)
    return (AutoModel if kind == "bert" else AutoModelForCausalLM).from_config(config).eval()


def method(*options: str):
    return make_method(compose(["method=bottleneck_adapter", "method.reduction_factor=4", *options]).tree["method"])


def outputs(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 19)[None])[0]


@pytest.mark.parametrize("kind", ENDS)
def test_adapters_stand_behind_the_sublayers_of_every_kind(kind):
    _, attention, mlp = ENDS[kind]
    model = build(kind)
    assert sum(n.endswith(f".0.{mlp}") for n, _ in model.named_modules()) >= 1
    assert [n.partition(".0.")[2] for n in sublayer_ends(model, "houlsby", [0])] == [attention, mlp]
    (last,) = sublayer_ends(model, "pfeiffer", [1])
    assert last.endswith(f".1.{mlp}")

    plain = outputs(model)
    config = method("method.placement=houlsby").peft_config(model)
    config.task_type = None if kind == "bert" else config.task_type
    tuned = get_peft_model(model, config).eval()
    assert torch.equal(outputs(tuned), plain), "the start is the base"
    up = [p for n, p in tuned.named_parameters() if "bottleneck_up" in n and n.endswith("weight")]
    assert len(up) == 4
    for weight in up:
        torch.nn.init.normal_(weight)
    assert not torch.allclose(outputs(tuned), plain, atol=1e-2)
    with tuned.disable_adapter():
        assert torch.equal(outputs(tuned), plain)
    assert all(p.requires_grad == ("bottleneck_" in n) for n, p in tuned.named_parameters())


def test_the_formula_is_the_papers():
    """By hand: h + up(gelu(down(h))) behind the last linear module of the MLP."""
    model = build("llama")
    seen = {}
    model.model.layers[1].mlp.down_proj.register_forward_hook(lambda m, a, out: seen.update(h=out))
    tuned = method("method.layers_to_transform=[1]").apply(model)
    layer = tuned.base_model.model.model.layers[1].mlp.down_proj
    down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
    torch.nn.init.normal_(up.weight)
    layer.register_forward_hook(lambda m, a, out: seen.update(out=out))
    outputs(tuned.eval())
    h = seen["h"]
    by_hand = h + torch.nn.functional.gelu(h @ down.weight.T + down.bias) @ up.weight.T + up.bias
    assert down.weight.shape == (8, 32)
    assert difference(seen["out"], by_hand) < ROUNDING


def test_several_adapters_switch_and_merging_is_refused(tmp_path):
    model = method().apply(build("llama"))
    for name in ("default", "second"):
        if name == "second":
            model.add_adapter(name, model.peft_config["default"])
            model.set_adapter(name)
        for n, p in model.named_parameters():
            if f"bottleneck_up.{name}.weight" in n:
                torch.nn.init.normal_(p)
    second = outputs(model.eval())
    model.set_adapter("default")
    first = outputs(model)
    assert not torch.allclose(first, second, atol=1e-2)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build("llama"), tmp_path)
    again.load_adapter(tmp_path / "second", "second")
    assert difference(outputs(again.eval()), first) < ROUNDING
    again.set_adapter("second")
    assert difference(outputs(again), second) < ROUNDING
    with pytest.raises(ValueError, match="cannot be merged"):
        model.merge_and_unload()


@pytest.mark.soak
def test_plain_peft_loads_it_once_the_module_is_imported(tmp_path):
    build("llama").save_pretrained(tmp_path / "base")
    model = method().apply(build("llama"))
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["peft_type"] == "BOTTLENECK"
    code = (
        "import sys\n"
        "if len(sys.argv) > 1: import tuneforge.methods.bottleneck_adapter\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM\n"
        f"base = AutoModelForCausalLM.from_pretrained({str(tmp_path / 'base')!r})\n"
        f"print(type(PeftModel.from_pretrained(base, {str(tmp_path / 'adapter')!r})).__name__)\n"
    )
    without, imported = (
        subprocess.run([sys.executable, "-c", code, *more], capture_output=True, text=True, check=False)
        for more in ([], ["import"])
    )
    assert "KeyError: 'BOTTLENECK'" in without.stderr
    assert imported.stdout == "PeftModelForCausalLM\n", imported.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["method.target_modules=[q_porj]"], "did you mean 'q_proj'"),
        (["method.layers_to_transform=[99]"], "names 99, and the model has layers 0 to"),
        (["method.layers_to_transform=[]"], "names no layer"),
        (["method.layers_to_transform=[0]", "method.target_modules=[o_proj]"], "drop one of the two"),
    ],
)
def test_places_that_are_not_there_are_refused(options, says):
    with pytest.raises(TuneforgeError) as raised:
        method(*options).apply(build("llama"))
    assert says in str(raised.value.problems[0])


def test_a_model_of_unknown_structure_is_refused_with_its_modules():
    model = build("llama")
    model.model.layers[0].mlp = torch.nn.Identity()
    with pytest.raises(TuneforgeError) as raised:
        method().apply(model)
    assert "name them, of down_proj" in str(raised.value.problems[0])


def test_another_methods_adapter_is_refused(tmp_path):
    model = method().apply(build("llama"))
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text().replace("BOTTLENECK", "FROM_ELSEWHERE"))
    with pytest.raises(TuneforgeError) as raised:
        method().apply(build("llama"), str(tmp_path))
    assert "use the method that made it" in str(raised.value.problems[0])


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mixtral"])
def test_the_plan_counts_what_is_trained(kind, placement):
    node = compose(["method=bottleneck_adapter", "method.reduction_factor=4", f"method.placement={placement}"]).tree
    model = make_method(node["method"]).apply(build(kind))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = ModelShape.from_hf_config(model.config.to_dict())
    assert Trainable.of_method(node["method"]).num_parameters(shape) == trained


def test_an_adapter_behind_attention_changes_its_hidden_states_and_leaves_its_weights():
    model = build("llama")
    plain = outputs(model)
    tuned = method("method.target_modules=[self_attn]").apply(model)
    assert torch.equal(outputs(tuned), plain)
    for name, weight in tuned.named_parameters():
        if "bottleneck_up" in name:
            torch.nn.init.normal_(weight)
    assert not torch.allclose(outputs(tuned), plain, atol=1e-2)
