"""`sanity.overfit_one_batch`: a model that can learn passes and is put back; one that cannot stops the run."""

import pytest

from helpers import SHORT

ON = ("sanity.overfit_one_batch=true", "batch.per_device=2")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_healthy_run_is_the_same_to_the_bit_with_the_check(command, method):
    options = (*SHORT, f"method={method}", "batch.per_device=2", "optim.lr=3e-3", "trainer.max_steps=2")
    plain = command(*options)
    checked = command(*options, *ON)
    assert checked.code == 0, checked.err
    assert "sanity: one batch learnt by heart" in checked.out
    assert checked.losses == plain.losses
    assert checked.record["metrics"]["after"] == plain.record["metrics"]["after"]


@pytest.mark.parametrize("fault", ["optim.lr=1e-9", "optim.lr=1e2"])
def test_a_run_that_cannot_learn_stops_with_the_likely_causes_and_writes_nothing(command, fault):
    ran = command(*SHORT, *ON, fault, "sanity.steps=15")
    assert ran.code == 3
    assert "one batch could not be learnt by heart" in ran.err
    assert "optim.lr too low, too high or nan" in ran.err
    assert not ran.folder.exists()
