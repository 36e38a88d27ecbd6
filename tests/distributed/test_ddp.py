"""Two processes give what one gives."""

import pytest

from helpers import SHORT


@pytest.mark.parametrize("method", ["lora", "qlora", "eva"])
def test_two_processes_train_as_one(command, method):
    # Adam's first updates are about lr * sign(gradient): a large rate blows rounding up into the next steps' gradients.
    options = [
        *SHORT,
        f"method={method}",
        "task_recipe.dropout=0",
        "data.packing=false",
        # What EVA finds is the same in both processes, and as in one.
        *(["task_recipe.targets=[q_proj]"] if method == "eva" else []),
        "batch.effective=8",
        "optim.lr=2e-4",
    ]
    one = command(*options, "batch.per_device=4")
    two = command(*options, "batch.per_device=2", "strategy=ddp", "trainer.devices=2")
    assert two.code == 0, two.err + two.out
    assert two.record["settled"]["world_size"] == 2
    assert one.record["settled"]["documents_per_step"] == two.record["settled"]["documents_per_step"]
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    norms = [[m["train/grad_norm"] for m in ran.metrics if "train/grad_norm" in m] for ran in (one, two)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    evals = [[m["eval/loss"] for m in ran.metrics if "eval/loss" in m] for ran in (one, two)]
    assert evals[1] == pytest.approx(evals[0], rel=1e-5)
