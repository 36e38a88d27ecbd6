"""One of two processes that compare gradients of a model whole and shared between them, in double precision."""

import json
import os
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoModelForCausalLM

from tuneforge.sharding import clip_gradients
from tuneforge.strategies.fsdp import whole
from tuneforge.strategies.fsdp_tp import parallelise


def gradients(folder: str, adapted: bool, shared: bool) -> dict[str, torch.Tensor]:
    """Of every trained weight, whole; and their norm."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    if adapted:
        # As after some steps: with B at 0 half of the gradients would be.
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    if shared:
        parallelise(model, init_device_mesh("cpu", (2,)))
    ids = torch.arange(40).reshape(2, 20) + 5
    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    found = {"norm": clip_gradients(list(trained.values()), 1.0)}
    return found | {n: whole(p.grad) for n, p in trained.items()}


def compare(folder: str) -> dict[str, float]:
    """Largest difference of any gradient, relative to the largest of its matrix."""
    worst = {}
    for adapted in (False, True):
        one, two = (gradients(folder, adapted, shared) for shared in (False, True))
        assert one.keys() == two.keys()
        worst["lora" if adapted else "full"] = max(
            float((one[n] - two[n]).abs().max() / one[n].abs().max()) for n in one
        )
    return worst


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    Path(sys.argv[2], f"{os.environ['RANK']}.json").write_text(json.dumps(compare(sys.argv[1])))
