"""Learning rates over a run."""

import math

import pytest
import torch

from tuneforge.objectives.base import follow_schedule
from tuneforge.schedulers import constant, cosine, cosine_with_restarts, inverse_sqrt, linear, wsd


def rates(schedule, steps: int, **options) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps, **options)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("schedule", [cosine, linear, constant, cosine_with_restarts, wsd, inverse_sqrt])
def test_warmup_rises_to_the_peak_and_never_wastes_a_step(schedule):
    seen = rates(schedule, 100, warmup_ratio=0.1)
    assert seen[0] > 0
    assert seen[:11] == sorted(seen[:11])
    assert max(seen) == pytest.approx(1.0)
    assert seen.index(max(seen)) == 10


def test_cosine_follows_its_formula_and_ends_near_zero():
    seen = rates(cosine, 100, warmup_ratio=0.0)
    assert seen[50] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert seen[-1] < 0.001


def test_a_floor_is_kept():
    assert rates(cosine, 50, warmup_ratio=0.0, min_lr_ratio=0.1)[-1] == pytest.approx(0.1, abs=2e-3)


def test_linear_falls_evenly_and_constant_stays():
    seen = rates(linear, 10, warmup_ratio=0.0)
    assert seen == pytest.approx([1 - i / 10 for i in range(10)])
    assert rates(constant, 10, warmup_ratio=0.0) == [1.0] * 10


def test_restarts_come_back_to_the_peak():
    seen = rates(cosine_with_restarts, 90, warmup_ratio=0.0, cycles=3)
    assert [i for i, rate in enumerate(seen) if rate == pytest.approx(1.0)] == [0, 30, 60]


def test_wsd_stays_and_falls_at_the_end():
    seen = rates(wsd, 100, warmup_ratio=0.1, decay_ratio=0.2)
    assert seen[10:81] == [1.0] * 71
    assert seen[90] == pytest.approx(0.5)
    assert seen[-1] == pytest.approx(0.05)


def test_inverse_sqrt_follows_its_formula():
    seen = rates(inverse_sqrt, 100, warmup_ratio=0.1)
    assert seen[40] == pytest.approx(0.5)
    assert seen[90] == pytest.approx(1 / 3)


@pytest.mark.parametrize("schedule", [cosine, linear, constant, cosine_with_restarts, wsd, inverse_sqrt])
@pytest.mark.parametrize("steps", [4, 8])
def test_a_resumed_schedule_has_the_rates_of_the_new_number_of_steps(schedule, steps):
    """A checkpoint at the end of 4 steps holds the old rate, 0 for most; a guard may have halved the base."""
    weight = torch.nn.Parameter(torch.zeros(1))
    old = schedule(torch.optim.SGD([weight], lr=0.01), 4)
    for _ in range(4):
        old.optimizer.step()
        old.step()
    old.base_lrs = [0.005]
    new = schedule(torch.optim.SGD([weight], lr=0.01), steps)
    new.optimizer.load_state_dict(old.optimizer.state_dict())
    new.load_state_dict(old.state_dict())
    follow_schedule(new)
    resumed = []
    for _ in range(4):
        resumed.append(new.optimizer.param_groups[0]["lr"])
        new.optimizer.step()
        new.step()
    whole = schedule(torch.optim.SGD([weight], lr=0.005), steps)
    expected = []
    for _ in range(8):
        expected.append(whole.optimizer.param_groups[0]["lr"])
        whole.optimizer.step()
        whole.step()
    assert resumed == pytest.approx(expected[4:], abs=1e-12)
