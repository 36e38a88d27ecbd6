"""Methods that start from train rows: what they find in them, and what they leave of the base."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import ROUNDING, difference, documents, make_method
from tuneforge.compose import compose
from tuneforge.data.batches import Collate, Rows
from tuneforge.data.encode import IGNORE
from tuneforge.errors import TuneforgeError

LAYER = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def batches():
    rows = Rows(documents(24), 64, packing=False)
    return [Collate(0)([rows[i] for i in range(n, n + 8)]) for n in (0, 8, 16)]


def built(*options: str):
    return make_method(compose(["method.r=4", "task_recipe.dropout=0", *options]).tree["method"])


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(5, 37)[None], use_cache=False).logits


def inputs_of(model, batches) -> torch.Tensor:
    """The layer's inputs where a token is to be predicted; [tokens, width]."""
    found = []
    handle = model.get_submodule(LAYER).register_forward_hook(lambda m, args, out: found.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    handle.remove()
    return torch.cat([x[b["labels"] != IGNORE] for x, b in zip(found, batches, strict=True)])


def test_eva_starts_from_the_main_directions_of_the_inputs(model_folders, batches):
    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32).eval()
    plain, inputs = logits(model), inputs_of(model, batches)
    method = built("method=eva", "method.tau=0.999")
    method.observe(model, batches)
    tuned = method.apply(model)
    a = tuned.get_parameter(f"base_model.model.{LAYER}.lora_A.default.weight")
    # By hand: the directions in which the inputs vary most hold as much of them as those that were found.
    centred = inputs - inputs.mean(0)
    best = torch.linalg.svd(centred, full_matrices=False)[2][:4]
    held = [(centred @ rows.T).square().sum() for rows in (a.detach(), best, torch.linalg.qr(torch.randn(128, 4))[0].T)]
    assert held[0] > 0.95 * held[1]
    assert held[0] > 3 * held[2]
    assert torch.allclose(a @ a.T, torch.eye(4), atol=1e-4)
    assert torch.equal(logits(tuned), plain)


def test_corda_moves_what_matters_to_the_rows_and_starts_as_the_base(model_folders, batches):
    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32).eval()
    plain, before = logits(model), model.get_submodule(LAYER).weight.detach().clone()
    inputs = inputs_of(model, batches)
    method = built("method=corda")
    method.observe(model, batches)
    tuned = method.apply(model)
    assert difference(logits(tuned), plain) < ROUNDING
    moved = before - tuned.base_model.model.get_submodule(LAYER).base_layer.weight.detach()
    left = torch.linalg.svd(before)[0]
    pissa = left[:, :4] @ left[:, :4].T @ before
    assert torch.linalg.matrix_rank(moved) == 4
    # Of all the layer says about these rows, the part moved holds more than the base's own main directions do.
    assert (inputs @ moved.T).norm() > (inputs @ pissa.T).norm()


def test_rows_that_say_too_little_are_refused(model_folders, batches):
    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    few = Collate(0)([Rows(documents(1), 64, packing=False)[0]])
    with pytest.raises(TuneforgeError, match="no batch has more than"):
        built("method=eva", "method.r=64").observe(model, [few])
    with pytest.raises(TuneforgeError, match="have not settled"):
        built("method=eva", "method.tau=1.0").observe(model, [few])


def test_nothing_is_observed_to_go_on_from_an_adapter(model_folders, batches, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    method = built("method=eva")
    method.observe(model, batches)
    tuned = method.apply(model)
    tuned.save_pretrained(tmp_path)
    again = method.apply(
        AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32), str(tmp_path)
    )
    name = f"base_model.model.{LAYER}.lora_A.default.weight"
    assert torch.equal(again.get_parameter(name), tuned.get_parameter(name))


@pytest.mark.parametrize("method", ["eva", "corda"])
def test_another_start_is_refused(method):
    with pytest.raises(TuneforgeError, match="init_lora_weights"):
        compose([f"method={method}", "method.init_lora_weights=gaussian"])
