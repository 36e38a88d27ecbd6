"""Under strategy=fsdp a process reads its part of the weights, and takes no more memory on the way there."""

import json
from pathlib import Path

import grid
import pytest

from helpers import make_tokenizer
from tuneforge.compose import compose

# 162 million weights: large beside what Python and its libraries take and give back meanwhile.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A random Llama in four files of bf16, as models are published; on a CPU it is held in fp32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("large")
    model = LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=1, eos_token_id=2)).bfloat16()
    model.save_pretrained(folder, max_shard_size="90MB")
    make_tokenizer().save_pretrained(folder)
    return folder


def grown(folder: Path, model: Path, method: str, how: str) -> list[dict[str, int]]:
    """Of both processes of a run: how many bytes of memory the model took, at its peak and for good."""
    options = [f"method={method}", "strategy=fsdp", "trainer.devices=2", *grid.OPTIONS, "batch.per_device=1"]
    found = compose([*options, "model=hf", f"model.path={model}", f"hydra.run.dir={folder / 'run'}"])
    handover = grid.handed_over(found, folder / "handover.json")
    grid.start("peak", handover, how, devices=2, seconds=grid.SECONDS)
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.peak"))]


@pytest.mark.parametrize(
    ("method", "how"),
    [
        pytest.param("full", "streamed", marks=pytest.mark.soak),
        pytest.param("lora", "streamed", marks=pytest.mark.soak_full),
        pytest.param("full", "whole", marks=pytest.mark.soak_full),
    ],
)
def test_building_the_model_takes_its_part_and_no_more_than_a_file(large, tmp_path, method, how):
    files = [file.stat().st_size for file in large.glob("*.safetensors")]
    assert len(files) == 4
    part = sum(files)  # half of the weights, at twice the bytes
    found = grown(tmp_path, large, method, how)
    assert len(found) == 2
    for process in found:
        assert process["kept"] > 0.9 * part
        assert (process["peak"] < 1.5 * part + max(files)) == (how == "streamed")
