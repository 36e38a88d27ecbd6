"""What only a CUDA device can show; skipped with the reason elsewhere. `make test-gpu` runs these."""

import pytest
import torch

from helpers import SHORT

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_a_method_learns_on_cuda_in_bf16(command, method):
    ran = command(f"method={method}", *SHORT, "optim.lr=2e-3", "trainer.max_steps=8")
    assert ran.code == 0, ran.err
    assert ran.record["hardware"]["present"]["device"].startswith("cuda")
    assert ran.record["settled"]["precision"] == "bf16-mixed"
    assert ran.record["settled"]["gradient_checkpointing"]
    before, after = (ran.record["metrics"][k]["eval/loss"] for k in ("before", "after"))
    assert after < 0.95 * before
    assert all(m["train/grad_norm"] > 0 for m in ran.metrics if "train/grad_norm" in m)


def test_qlora_pages_its_optimizer_states():
    from bitsandbytes.optim import PagedAdamW8bit

    from tuneforge.optim import paged_adamw_8bit

    parameter = torch.nn.Parameter(torch.zeros(4096, 64, device="cuda"))
    optimizer = paged_adamw_8bit([{"params": [parameter], "weight_decay": 0.0}], lr=1e-3)
    assert isinstance(optimizer, PagedAdamW8bit)


@pytest.mark.parametrize("memory", ["trainer.gradient_checkpointing=selective", "trainer.activation_offload=true"])
def test_less_memory_and_the_same_numbers(command, memory):
    options = (*SHORT, "trainer.precision=32-true", "data.max_length=512", "batch.per_device=4")
    plain = command(*options, "trainer.gradient_checkpointing=false")
    less = command(*options, "trainer.gradient_checkpointing=false", memory)
    assert less.losses == pytest.approx(plain.losses, rel=1e-5)
