"""`python -m tuneforge` as it is typed: it learns, and it learns the mapping rather than the format."""

import pytest


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_the_main_job_learns_what_shuffled_answers_cannot_teach(command):
    ran, control = command(), command("data.shuffle_answers=true")
    assert ran.code == control.code == 0, ran.err + control.err
    before, after = (ran.record["metrics"][k]["eval/loss"] for k in ("before", "after"))
    shuffled = control.record["metrics"]["after"]["eval/loss"]
    assert after < 0.8 * before
    assert after < 0.9 * shuffled
    samples = ran.record["samples"]
    assert [s["answer"] for s in samples["before"]] != [s["answer"] for s in samples["after"]]
    # Nothing is wrong with it, and no guard says so at any of its steps.
    assert {name: guard["count"] for name, guard in ran.record["guards"].items() if guard["count"]} == {}
    assert [gate["name"] for gate in ran.record["gates"] if gate["passed"] is False] == []


@pytest.mark.soak_full
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("options", [["method=qlora", "hardware=rtx4090"], ["method=full"]])
def test_the_other_methods_learn_as_typed(command, options):
    ran = command(*options, "trainer.max_steps=50")
    assert ran.code == 0, ran.err
    before, after = (ran.record["metrics"][k]["eval/loss"] for k in ("before", "after"))
    assert after < 0.8 * before
