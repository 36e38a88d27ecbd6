"""What only a CUDA device can show; skipped with the reason elsewhere. `make test-gpu` runs these."""

import time

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


@pytest.mark.parametrize(("products", "share"), [(0, 1.0), (200, 0.0)])
def test_a_wait_is_lost_only_while_the_device_is_idle(products, share):
    from tuneforge.callbacks.waste_guard import Pause

    square = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    for _ in range(products):  # seconds of work
        square @ square
    pause = Pause(square.device)
    time.sleep(0.3)
    pause.end(0.3)
    assert pause.lost() == pytest.approx(0.3 * share, abs=0.05)


def test_the_use_of_the_gpu_is_logged(command):
    ran = command(*SHORT, "trainer.max_steps=20", "callbacks.waste_guard.window=6")
    assert ran.code == 0, ran.err
    assert 0 < ran.metrics[-1]["waste_guard/gpu_memory"] < 100
    assert 0 < ran.record["guards"]["waste_guard"]["use"]["gpu_memory"] < 1
