"""Waiting for rows, slowing down, evaluating too much, a GPU without work: each is planted, seen and told once."""

import time

import pytest
import torch

from guards.conftest import found
from guards.test_quality_gates import gates
from tuneforge.callbacks import gpu_use, waste_guard
from tuneforge.callbacks.waste_guard import WasteGuard
from tuneforge.data.batches import Collate
from tuneforge.objectives.causal_lm import CausalLM

# One pass and no evaluation before the end; the guard looks at steps 6 to 11, then every three.
ONE = ("batch.per_device=8", "trainer.val_check_interval=100", "callbacks.waste_guard.window=6")


def last(ran, gauge):
    """What was logged of it last."""
    return [m[key] for m in ran.metrics if (key := f"waste_guard/{gauge}") in m][-1]


@pytest.fixture
def waiting(monkeypatch):
    """Train batches take as many times the step before to collate as the function of their number says."""

    def slow(times):
        collate, ends = Collate.__call__, []

        def sleeping(self, items):
            if items[0][3]:  # of a train step
                now = time.perf_counter()
                time.sleep(times(len(ends) + 1) * (now - ends[-1] if ends else 0))
                ends.append(time.perf_counter())
            return collate(self, items)

        monkeypatch.setattr(Collate, "__call__", sleeping)

    return slow


def test_a_slow_loader_ends_the_run_within_the_window_where_asked(fast, waiting):
    waiting(lambda step: 1)
    ran = fast(*ONE, "callbacks.waste_guard.action=stop", steps=20)
    assert ran.code == 3
    assert found(ran, "waste_guard") == [(11, "data-wait", "stopped the run")]
    assert "of the time of steps 6 to 11 was spent waiting for rows" in ran.err
    assert "data.num_workers=2" in ran.err
    assert max(m["step"] for m in ran.metrics) == 11
    use = ran.record["guards"]["waste_guard"]["use"]
    assert use["data_wait"] > 0.2
    assert f"{100 * use['data_wait']:.1f} % of the time" in (ran.folder / "report.html").read_text()


def test_rows_that_come_in_bursts_are_waited_for_too(fast, waiting):
    waiting(lambda step: 4 if step % 3 == 0 else 0)
    ran = fast(*ONE, steps=12)
    assert ran.code == 0
    assert found(ran, "waste_guard") == [(11, "data-wait", "warned")]
    assert last(ran, "data_wait") > 0.2


def test_one_long_wait_is_no_finding(fast, waiting):
    waiting(lambda step: 8 if step == 8 else 0)
    ran = fast(*ONE, steps=12)
    assert found(ran, "waste_guard") == []
    assert last(ran, "data_wait") < 0.2
    assert ran.record["guards"]["waste_guard"]["use"]["data_wait"] > 0.2


@pytest.mark.parametrize(("others", "findings"), [(0.0, [(15, "slower", "warned")]), (0.9, [])])
def test_a_run_that_slows_down_is_told_unless_others_took_the_cores(fast, monkeypatch, others, findings):
    training_step, ends = CausalLM.training_step, []

    def slower(self, batch, batch_idx):
        """Each of the last steps waits for almost as long as three of the first took."""
        if self.trainer.global_step >= 12:
            time.sleep((ends[11] - ends[0]) / 4)
        ends.append(time.perf_counter())
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "training_step", slower)
    monkeypatch.setattr(WasteGuard, "_host_share", lambda self: others)
    ran = fast(*ONE, "callbacks.waste_guard.window=4", steps=16)
    assert found(ran, "waste_guard") == findings
    assert last(ran, "speed") < 0.5


def test_much_evaluation_is_told_with_a_longer_interval(fast, monkeypatch):
    validation_step, begin = CausalLM.validation_step, time.perf_counter()
    monkeypatch.setattr(waste_guard, "LEAST_EVALUATING", 0.0)

    def slow(self, batch, batch_idx):
        time.sleep(time.perf_counter() - begin if self.trainer.state.fn == "fit" else 0)
        validation_step(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "validation_step", slow)
    ran = fast("trainer.val_check_interval=2", "data.split.max_eval_rows=1", steps=2)
    ((_, code, did),) = found(ran, "waste_guard")
    assert (code, did) == ("much-evaluation", "warned")
    (event,) = ran.record["guards"]["waste_guard"]["events"]
    assert "trainer.val_check_interval=4" in event["fix"]
    assert ran.record["guards"]["waste_guard"]["use"]["eval_time"] > 0.3


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is busy for a fifth of the time and three tenths full."""
    start = WasteGuard.on_train_start

    def with_gpu(self, trainer, pl_module):
        start(self, trainer, pl_module)
        self.gpu = gpu_use.GpuUse(torch.device("cuda", 0))

    sizes = type("Properties", (), {"total_memory": 1000})
    monkeypatch.setattr(WasteGuard, "on_train_start", with_gpu)
    monkeypatch.setattr(gpu_use, "EVERY", 0.0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: sizes)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 20)


def test_a_gpu_without_work_fails_its_gate(fast, gpu):
    ran = fast(*ONE, "batch.per_device=4", steps=12)
    assert ran.code == 0
    assert found(ran, "waste_guard") == [(11, "gpu-idle", "warned"), (11, "memory-unused", "warned")]
    fixes = [event["fix"] for event in ran.record["guards"]["waste_guard"]["events"]]
    assert "data.packing=true; batch.per_device=8; model.torch_compile=true" in fixes[0]
    assert "batch.per_device=8" in fixes[1]
    assert (last(ran, "gpu_utilisation"), last(ran, "gpu_memory")) == (20, 30)
    assert gates(ran)["utilisation"] == (
        False, "the GPU was busy for 20% of the time, with at most 30% of its memory",
    )  # fmt: skip
    assert "20 % of the time<small>at most 30 % of its memory" in (ran.folder / "report.html").read_text()


def test_a_driver_that_does_not_tell_is_not_asked_again(fast, gpu, monkeypatch):
    asked = []

    def nothing(device):
        asked.append(1)
        raise ModuleNotFoundError("nvidia-ml-py does not seem to be installed")

    monkeypatch.setattr(torch.cuda, "utilization", nothing)
    ran = fast(*ONE, steps=12)
    assert found(ran, "waste_guard") == []
    assert len(asked) == 1
    assert "utilisation" not in gates(ran)
    assert last(ran, "gpu_memory") == 30
