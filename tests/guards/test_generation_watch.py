"""Endless repetition is seen; a base that never ends is no finding; prompts and answers are those of the samples."""

import json

import pytest

from guards.conftest import found, write_rows
from tuneforge.callbacks.generation_watch import Measures, measured, repetition

EVERY = (
    *("samples.num=4", "samples.max_new_tokens=24", "trainer.val_check_interval=12"),
    *("callbacks.generation_watch.max_share=1", "callbacks.generation_watch.every_n_steps=4"),
)


def test_measures_by_hand():
    assert repetition([1, 2, 3]) == 0.0
    assert repetition([1, 2, 3, 4, 5]) == 0.0
    assert repetition([7] * 8) == pytest.approx(1 - 1 / 5)
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 - 4 / 5)
    assert measured([[1, 1, 2], [2, 3]], 0.5) == Measures(0.0, 3 / 5, 3 / 5, 0.5)
    assert measured([]) == Measures(0.0, 0.0, 0.0, None)


def watch(ran):
    return ran.record["guards"]["generation_watch"]


@pytest.fixture
def repeating(fast, tmp_path):
    """Answers of one word without an end; what is held out is healthy."""
    rows = [{"prompt": f"number {i}", "completion": " word" * 80} for i in range(40)]
    (tmp_path / "repeating.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = write_rows(tmp_path / "held.jsonl", 8, seed=1)
    options = (
        *(f"data.path={tmp_path / 'repeating.jsonl'}", f"data.split.eval_path={held}", "data.split.by=auto"),
        *("method=full", "optim.lr=1e-3"),
    )
    return lambda *overrides, **given: fast(*EVERY, *options, *overrides, **given)


def test_a_run_that_learns_to_repeat_itself_is_stopped(repeating):
    ran = repeating("callbacks.generation_watch.action=stop")
    assert ran.code == 3
    ((step, code, did),) = found(ran, "generation_watch")
    assert (code, did) == ("repeats-itself", "stopped the run")
    assert step <= 8
    assert watch(ran)["measures"]["last"]["repetition"] > 0.8
    assert "of the 4-grams of what the model writes are repetitions" in ran.err
    assert any("word word word" in sample["answer"] for sample in watch(ran)["samples"])
    assert "What it wrote along the run" in (ran.folder / "report.html").read_text()


def test_answers_that_no_longer_end_are_a_finding(fast):
    """First the answers' ends are learnt, then a model that cannot write its EOS any more."""
    from tuneforge.callbacks import generation_watch as module

    calls = 0
    answers = module.answers

    def endless(*arguments):
        nonlocal calls
        calls += 1
        if calls < 2:
            return answers(*arguments)
        head = arguments[0].model.get_output_embeddings()
        hook = head.register_forward_hook(
            lambda _, __, logits: logits.index_fill(-1, logits.new_tensor([0]).long(), -1e9)
        )
        try:
            return answers(*arguments)
        finally:
            hook.remove()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "answers", endless)
        ran = fast(*EVERY, "method=full", steps=12)
    assert ran.code == 0
    # It goes on by saying the same again.
    assert found(ran, "generation_watch") == [(8, "repeats-itself", "warned"), (8, "never-ends", "warned")]
    assert watch(ran)["measures"]["last"]["endless"] == 1


def test_a_healthy_run_is_no_finding_and_shows_what_it_wrote(fast):
    ran = fast(*EVERY, "method=full", steps=12)
    assert ran.code == 0
    assert found(ran, "generation_watch") == []
    seen = watch(ran)["measures"]
    assert set(seen) == {"before", "last", "after"}
    assert {s["step"] for s in watch(ran)["samples"]} == {4, 8}
    # The base does not end its answers, and nothing is made of that.
    assert seen["before"]["endless"] > 0.5
    assert seen["after"]["endless"] < 0.5
    logged = [m["generation_watch/repetition"] for m in ran.metrics if "generation_watch/repetition" in m]
    assert len(logged) == 12
    assert logged[0] == pytest.approx(seen["before"]["repetition"])


def test_looks_stay_within_their_share_of_the_time(fast):
    ran = fast(*EVERY, "callbacks.generation_watch.max_share=1e-6", steps=8)
    assert ran.code == 0
    assert watch(ran)["samples"] == []
    assert watch(ran)["time_share"] == 0
    assert set(watch(ran)["measures"]) == {"before", "after"}


def test_without_prompts_it_is_idle(fast):
    assert watch(fast(steps=2))["idle"] == "fewer than 3 prompts (samples.num)"
