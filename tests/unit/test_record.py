"""Numbers of run.json that are worked out (utilisation, weights), and commands that are printed to be typed again."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tuneforge import sharding
from tuneforge.artifacts.record import Record
from tuneforge.compose import compose
from tuneforge.data.batches import Rows
from tuneforge.data.encode import IGNORE, Document
from tuneforge.plan.shape import ModelShape, Trainable
from tuneforge.plan.speed import flops_per_token
from tuneforge.study.answer import Answer

LLAMA = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip


@pytest.mark.parametrize("max_length", [16, 256])
def test_utilisation_counts_all_tokens_of_the_documents_and_no_padding(tmp_path, max_length):
    composed = compose(["hardware=h100"])
    ids = np.arange(10)
    documents = [Document(ids, np.where(ids < 6, IGNORE, ids), f"t:{i}") for i in range(4)]
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "train/tokens_per_s": 1000.0}) + "\n")
    context = SimpleNamespace(
        machine=SimpleNamespace(kind="cuda", name="NVIDIA H100 80GB HBM3", world_size=2),
        architecture=SimpleNamespace(to_dict=lambda: LLAMA),
        folder=SimpleNamespace(metrics=tmp_path / "metrics.jsonl"),
        train_rows=Rows(documents, max_length, packing=False),
    )
    clock = time.perf_counter()
    record = SimpleNamespace(composed=composed, context=context, data={}, _classifies=False, clock=clock)
    flops = flops_per_token(ModelShape.from_hf_config(LLAMA), Trainable.of_method(composed.tree["method"]))
    # Of ten tokens four are supervised, and those are what the log counts.
    expected = flops * 1000 * 10 / 4 / (2 * composed.config.hardware.bf16_tflops * 1e12)
    assert Record._efficiency(record)["mfu"] == pytest.approx(expected)


@pytest.mark.parametrize(("storage", "packed"), [(torch.uint8, 32), (torch.bfloat16, 16), (torch.float32, 8)])
def test_a_packed_tensor_counts_as_the_weights_it_holds(monkeypatch, storage, packed):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 2, bias=False))
    model[0].weight = torch.nn.Parameter(torch.zeros(packed, 1, dtype=storage), requires_grad=False)
    monkeypatch.setattr(sharding, "is_4bit", lambda module: module is model[0])
    assert sharding.num_weights(model) == 8 * 8 + 16
    assert sharding.num_weights(model, trained=True) == 16


def test_the_best_trial_is_run_again_in_a_folder_of_its_own(tmp_path):
    kept = SimpleNamespace(fixed=["resume=auto", "hydra.run.dir=x", "seed=3"], config_dirs=[])
    trial = SimpleNamespace(user_attrs={"overrides": ["optim.lr=0.001"]})
    answer = Answer(tmp_path, kept, [], [trial], {})
    assert answer.command(trial) == "python -m tuneforge seed=3 optim.lr=0.001"
    answer.write_experiment()
    text = (tmp_path / "experiment" / "best.yaml").read_text()
    assert "resume" not in text
    assert "lr: 0.001" in text
