"""Devices that compute rows together give what one gives, for every kind of plan there is."""

import json

import grid
import pytest
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from helpers import make_model_folder, make_tokenizer
from tuneforge.errors import TuneforgeError
from tuneforge.strategies.fsdp_tp import STYLES, check

LLAMA = LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=6, intermediate_size=96)


@pytest.mark.parametrize(
    ("config", "size", "code", "fix"),
    [
        (LLAMA, 4, "does-not-divide", "set it to 2 or 3 or 6"),
        (LlamaConfig(num_key_value_heads=1), 2, "does-not-divide", "use strategy=fsdp"),
        (AutoConfig.for_model("gpt2"), 2, "no-tensor-plan", "use strategy=fsdp"),
        (AutoConfig.for_model("phi3"), 2, "no-tensor-plan", "use strategy=fsdp"),
        (AutoConfig.for_model("mixtral"), 2, "no-tensor-plan", "use strategy=fsdp"),
    ],
)
def test_a_model_that_cannot_be_shared_is_refused(config, size, code, fix):
    with pytest.raises(TuneforgeError) as raised:
        check(config, size)
    (problem,) = raised.value.problems
    assert (problem.code, problem.fix) == (code, fix)


@pytest.mark.soak
def test_it_is_refused_before_weights_load(command):
    ran = command("strategy=fsdp_tp", "strategy.tensor_parallel_size=4", "trainer.devices=4", "trainer.max_steps=1")
    assert ran.code == 2
    assert "num_key_value_heads=2" in ran.err
    assert ran.err.count("error:") == 1


def assert_equal(monkeypatch, folder, model, methods, devices):
    monkeypatch.setattr(grid, "OPTIONS", (*grid.OPTIONS, "model=hf", f"model.path={model}"))
    monkeypatch.setattr(grid, "DEVICES", devices)
    grid.run([(method, "single") for method in methods], 1, folder)
    grid.run([(method, "fsdp_tp") for method in methods], devices, folder)
    found = {method: grid.differences(folder, method, "fsdp_tp") for method in methods}
    assert all(loss < grid.LOSS and norm < grid.NORM for loss, norm in found.values()), found


@pytest.mark.soak
def test_gradients_of_a_shared_model_are_those_of_the_whole(tmp_path):
    """In double precision, which leaves no room for what is not there in single precision alone."""
    make_model_folder("qwen3", tmp_path / "model")
    grid.start("doubles", tmp_path / "model", tmp_path, devices=2, seconds=grid.SECONDS)
    found = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    assert len(found) == 2
    for worst in found:
        assert worst.keys() == {"full", "lora"}
        assert max(worst.values()) < 1e-12


# Biases; norms over heads, and so every style there is; the plainest.
@pytest.mark.parametrize(
    "architecture",
    [
        pytest.param(a, marks=pytest.mark.soak if a == "qwen3" else pytest.mark.soak_full)
        for a in ("qwen2", "qwen3", "gemma")
    ],
)
def test_each_kind_of_plan_is_equal(monkeypatch, tmp_path, architecture):
    model = make_model_folder(architecture, tmp_path / "model")
    styles = set(AutoConfig.from_pretrained(model).base_model_tp_plan.values())
    assert (styles == set(STYLES)) == (architecture == "qwen3")
    assert_equal(monkeypatch, tmp_path, model, ("full", "lora"), 2)


@pytest.mark.soak_full
def test_two_groups_of_two_are_equal_to_one(monkeypatch, tmp_path):
    """Sizes that four devices do not share evenly."""
    sizes = {"vocab_size": 517, "hidden_size": 60, "intermediate_size": 130, "head_dim": 10, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    assert_equal(monkeypatch, tmp_path, tmp_path / "model", ("full", "freeze", "lora"), 4)


@pytest.mark.parametrize(
    "strategy",
    [pytest.param("fsdp_offload", marks=pytest.mark.soak_full), pytest.param("fsdp_tp", marks=pytest.mark.soak)],
)
def test_a_run_that_was_resumed_goes_on_as_one_process_does(command, strategy):
    """With moments of other weights in the optimizer, or of other parts of them, the next losses would be others."""
    steady = (*grid.OPTIONS, "method=full", "scheduler=constant", "trainer.max_steps=4", "optim.lr=2e-5")
    one = command(*steady, "batch.per_device=4")
    rows = 2 * grid.GROUPS.get(strategy, 1)
    options = (*steady, f"strategy={strategy}", "trainer.devices=2", f"batch.per_device={rows}")
    begun = command(*options, "trainer.max_steps=2")
    assert begun.code == 0, begun.err
    assert command(*options, f"resume={begun.folder}").code == 0
    assert begun.losses == pytest.approx(one.losses, rel=grid.LOSS)
