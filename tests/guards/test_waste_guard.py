"""Waiting for rows, slowing down, evaluating too much, a GPU without work: each is planted, seen and told once."""

import pytest
import torch

from guards.conftest import found
from guards.test_quality_gates import gates
from tuneforge.callbacks import gpu_use, waste_guard
from tuneforge.callbacks.waste_guard import WasteGuard
from tuneforge.data import batches
from tuneforge.data.batches import Collate
from tuneforge.objectives.causal_lm import CausalLM

# One pass and no evaluation before the end; the guard looks at steps 6 to 11, then every three.
ONE = ("batch.per_device=8", "trainer.val_check_interval=100", "callbacks.waste_guard.window=6")


def last(ran, gauge):
    """What was logged of it last."""
    return [m[key] for m in ran.metrics if (key := f"waste_guard/{gauge}") in m][-1]


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def passes(self, monkeypatch, owner, name, seconds):
        """Each call takes so many seconds: a function of the call's number, from 1, and of its first two arguments."""
        before, calls = getattr(owner, name), []

        def slow(*args):
            calls.append(1)
            self.now += seconds(len(calls), *args[:2])
            return before(*args)

        monkeypatch.setattr(owner, name, slow)


@pytest.fixture
def clock(monkeypatch):
    """Of the guard and of what it reads. A step takes a second, and nobody else uses the cores."""
    clock = Clock()
    for module in (waste_guard, batches):
        monkeypatch.setattr(module, "time", clock)
    clock.passes(monkeypatch, CausalLM, "training_step", lambda step, *_: 1.0)
    monkeypatch.setattr(WasteGuard, "_host_share", lambda self: 0.0)
    return clock


@pytest.fixture
def waiting(clock, monkeypatch):
    """The rows of a train step take the seconds that the function of its number says."""

    def slow(seconds):
        steps = []

        def of_train_step(_, collate, items):
            steps.extend([1] if items[0][3] else [])
            return seconds(len(steps)) if items[0][3] else 0.0

        clock.passes(monkeypatch, Collate, "__call__", of_train_step)

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
def test_a_run_that_slows_down_is_told_unless_others_took_the_cores(fast, clock, monkeypatch, others, findings):
    clock.passes(monkeypatch, CausalLM, "training_step", lambda step, *_: 2.0 if step > 12 else 0.0)
    monkeypatch.setattr(WasteGuard, "_host_share", lambda self: others)
    ran = fast(*ONE, "callbacks.waste_guard.window=4", steps=16)
    assert found(ran, "waste_guard") == findings
    assert last(ran, "speed") < 0.5


def test_much_evaluation_is_told_with_a_longer_interval(fast, clock, monkeypatch):
    clock.passes(monkeypatch, CausalLM, "validation_step", lambda call, *_: 20.0)
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
