"""What the base could do is scored before and along the run; a run that destroys it is seen, for each action."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from guards.conftest import evals, found
from helpers import SHORT, documents, shown, signal_at
from tuneforge.callbacks.forgetting_check import ForgettingCheck
from tuneforge.data.batches import Collate
from tuneforge.data.encode import IGNORE
from tuneforge.data.known import known
from tuneforge.data.scored import Fall

ON = ("data.max_length=128", "callbacks.forgetting_check.max_share=1")
# All weights at a rate that goes up, on answers of random digits: the documentation is gone by the fourth step.
DESTROY = (*ON, "method=full", "trainer.val_check_interval=2", "optim.lr=1e-2", "scheduler.warmup_ratio=0.5")
STEPS = 8
LATEST = 4
"""The step by which that is seen, at one of the evaluations each two steps."""


@pytest.fixture
def task(tmp_path):
    """A few of the questions that the bundled model can answer, as a user's file."""
    path = tmp_path / "task.jsonl"
    path.write_text("".join(json.dumps(dict(row.fields)) + "\n" for row in known()["reference"][:24]))
    return f"callbacks.forgetting_check.tasks={{mine: {path}}}"


def tasks(ran):
    return ran.record["guards"]["forgetting_check"]["tasks"]


def gate(ran):
    (line,) = [g for g in ran.record["gates"] if g["name"] == "forgetting within 5%"]
    return line["passed"], line["value"]


def test_a_run_that_forgets_is_stopped_and_what_was_before_is_kept(fast, task):
    ran = fast(*DESTROY, task, "callbacks.forgetting_check.action=stop", steps=STEPS)
    assert ran.code == 3
    ((step, code, did),) = found(ran, "forgetting_check")
    assert (code, did) == ("forgetting", "stopped the run")
    assert 2 < step <= LATEST
    assert max(m["step"] for m in ran.metrics) == step
    # Better by the eval loss, the weights with the finding are not the best.
    measured = evals(ran)
    assert measured[step] < measured[step - 2]
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(
        min(loss for at, loss in measured.items() if 0 < at < step), abs=1e-6
    )
    assert ran.record["status"] == "refused"
    assert "below the untouched base: " in ran.err
    assert "data.replay.fraction=0.2" in ran.err


def test_a_run_that_forgets_is_warned_of_once_and_its_gate_fails(fast, task):
    ran = fast(*DESTROY, task, steps=STEPS)
    assert ran.code == 0
    events = found(ran, "forgetting_check")
    assert events[0][0] <= LATEST
    assert {e[1:] for e in events} == {("forgetting", "warned")}
    assert ran.out.count("warning: callbacks.forgetting_check") == 1
    first = tasks(ran)["mine"]
    assert first["after"] < 0.95 * first["base"]
    assert first["fall"] == pytest.approx(1 - first["after"] / first["base"])
    passed, value = gate(ran)
    assert not passed
    assert value.startswith("worst of 1: mine ")
    logged = [m["forgetting_check/mine"] for m in ran.metrics if "forgetting_check/mine" in m]
    assert logged[0] == pytest.approx(first["base"])
    assert logged[-1] < logged[0]
    report = (ran.folder / "report.html").read_text()
    assert "What the base could do" in report
    assert "acc_norm" in report


@pytest.mark.parametrize(
    ("term", "held"),
    [
        ((), "no term of the loss holds the model near its base"),
        (("regularise.ewc=1e-3", "regularise.rows=2"), "set regularise.ewc=0.002"),
    ],
)
def test_repair_halves_the_rate_doubles_what_holds_and_stops_where_that_is_not_enough(fast, task, term, held):
    repair = ("callbacks.forgetting_check.action=repair", "callbacks.forgetting_check.repairs=1")
    ran = fast(*DESTROY, task, *term, *repair, steps=STEPS)
    assert ran.code == 3
    (first, code, did), last = found(ran, "forgetting_check")
    assert first <= LATEST
    assert code == "forgetting-repaired"
    assert did.startswith("halved the learning rate to ")
    assert held in ran.record["guards"]["forgetting_check"]["events"][0]["message"]
    assert last[0] > first
    assert last[1:] == ("forgetting-again", "stopped the run")
    rates = {m["step"]: m["train/lr"] for m in ran.metrics if "train/lr" in m}
    # The rate still rises to its peak at the fifth step.
    assert rates[first] < 1e-2
    assert rates[first + 1] == pytest.approx(5e-3)


def test_a_healthy_run_of_the_defaults_forgets_nothing(command):
    asked = ("callbacks.forgetting_check.max_share=1", "callbacks.forgetting_check.min_steps=1")
    ran = command(*SHORT, *asked, "samples.num=0", "trainer.val_check_interval=4")
    assert ran.code == 0
    assert found(ran, "forgetting_check") == []
    assert gate(ran)[0] is True
    assert set(tasks(ran)) == {"descriptions", "reference"}
    for told in tasks(ran).values():
        assert abs(told["fall"]) < 0.05
        assert told["last"] == pytest.approx(told["after"])


def test_a_resumed_run_compares_with_the_base_of_its_checkpoint(fast, task, monkeypatch):
    options = (*ON, task, "trainer.val_check_interval=2", "method=full")
    whole = fast(*options, steps=6)
    signal_at(monkeypatch, 3)
    stopped = fast(*options, steps=6)
    assert stopped.code == 143
    before = tasks(stopped)["mine"]["base"]
    resumed = fast(*options, f"resume={stopped.folder}", steps=6)
    assert resumed.code == 0, resumed.err
    assert tasks(stopped)["mine"]["base"] == before == tasks(whole)["mine"]["base"]
    assert tasks(stopped)["mine"]["after"] == tasks(whole)["mine"]["after"]

    def numbers(ran):
        return {k: {n: v for n, v in m.items() if "time_share" not in n} for k, m in shown(ran.metrics).items()}

    assert numbers(stopped) == numbers(whole)


def test_tasks_that_the_base_was_not_scored_on_are_left_out_of_a_resumed_run(fast, task, tmp_path, monkeypatch):
    signal_at(monkeypatch, 3)
    stopped = fast(*ON, task, steps=6)
    (tmp_path / "other.jsonl").write_text('{"text": "something else"}\n' * 2)
    both = task.replace("{", f"{{other: {tmp_path / 'other.jsonl'}, ")
    resumed = fast(*ON, both, f"resume={stopped.folder}", steps=6)
    assert resumed.code == 0, resumed.err
    assert "was not scored on these rows before training: other" in resumed.out
    assert set(tasks(stopped)) == {"mine"}


def test_tasks_are_files_or_nodes_of_any_source(fast, task, tmp_path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"prompt": "one ", "completion": "two"}\n{"prompt": "a ", "completion": "b"}\n')
    pages = "{_target_: tuneforge.data.pydoc.pydoc_text, rows: 3}"
    given = task.replace("{mine", f"{{answers: {answers}, pages: {pages}, mine")
    ran = fast(*ON, given, steps=4)
    assert ran.code == 0, ran.err
    assert {name: (t["metric"], t["rows"]) for name, t in tasks(ran).items()} == {
        "answers": ("likelihood", 2), "pages": ("likelihood", 3), "mine": ("acc_norm", 24),
    }  # fmt: skip
    assert tasks(ran)["mine"]["base"] > 0.8


def test_rows_that_cannot_be_scored_are_told_before_weights_load(fast, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"question": "q", "choices": ["a", "b"], "answer": 7}\n')
    ran = fast(*ON, f"callbacks.forgetting_check.tasks={{facts: {tmp_path / 'bad.jsonl'}}}")
    assert ran.code == 2
    assert "callbacks.forgetting_check.tasks.facts: 1 of 1 rows are no questions" in ran.err


def test_a_check_waits_until_it_is_within_its_share_of_the_time(fast, task):
    ran = fast(task, "trainer.val_check_interval=1", "callbacks.forgetting_check.max_share=1e-6", steps=4)
    assert ran.code == 0
    told = tasks(ran)["mine"]
    assert told["last"] is None
    assert told["after"] is not None
    assert ran.record["guards"]["forgetting_check"]["time_share"] == 0
    free = fast(task, *ON, "callbacks.forgetting_check.every_n_steps=3", steps=4)
    assert tasks(free)["mine"]["last"] is not None
    assert 0 < free.record["guards"]["forgetting_check"]["time_share"] < 1


def test_where_there_is_nothing_to_ask_that_is_said(fast, model_folders):
    ran = fast("model=hf", f"model.path={model_folders['llama']}", steps=2)
    assert ran.code == 0
    assert gate(ran) == (None, "not measured: no tasks (callbacks.forgetting_check.tasks)")
    assert "open     forgetting within 5%: not measured: no tasks" in ran.out
    assert gate(fast(steps=2)) == (None, "not measured: fewer than 100 steps (callbacks.forgetting_check.min_steps)")


@pytest.mark.parametrize(
    "strategy", [pytest.param("fsdp", marks=pytest.mark.soak), pytest.param("ddp", marks=pytest.mark.soak_full)]
)
def test_two_processes_have_the_scores_of_one(fast, task, strategy):
    options = (
        *(*ON, task, "batch.per_device=2", "trainer.accelerator=cpu", "trainer.precision=32-true", "samples.num=3"),
        *("method=full", "optim.lr=1e-2", "samples.max_new_tokens=8"),
        *("callbacks.forgetting_check.action=stop", "callbacks.forgetting_check.every_n_steps=3"),
        *("callbacks.generation_watch.max_share=1", "callbacks.generation_watch.every_n_steps=2"),
    )
    one = fast(*options)
    two = fast(*options, f"strategy={strategy}", "trainer.devices=2")
    assert one.code == two.code == 3, two.err + two.out
    assert tasks(two)["mine"]["base"] == tasks(one)["mine"]["base"]
    assert found(two, "forgetting_check") == found(one, "forgetting_check") == [(3, "forgetting", "stopped the run")]
    watched = [ran.record["guards"]["generation_watch"] for ran in (one, two)]
    assert watched[0]["measures"]["before"] == watched[1]["measures"]["before"]
    assert [s["step"] for s in watched[1]["samples"]] == [2, 2, 2]


@pytest.mark.parametrize(
    ("now", "noise", "passed", "said"),
    [
        (0.96, 0.0, True, "(-4.0%)"),
        (0.92, 0.14, True, "which chance explains (up to 14.0%)"),
        (0.8, 0.14, False, "(-20.0%)"),
    ],
)
def test_the_gate_says_what_chance_explains(now, noise, passed, said):
    check = ForgettingCheck()
    check.result = {"steady": Fall(1.0, 1.0, 0.1), "facts": Fall(1.0, now, noise)}
    (gate,) = check.gates()
    assert gate.passed is passed
    assert gate.value.startswith("worst of 2: facts 1.0000 -> ")
    assert gate.value.endswith(said)


def test_processes_that_compute_a_row_together_score_the_same_rows_and_count_them_once():
    made, seen, total = documents(7), {}, np.zeros(7)
    for rank in range(4):
        batches = seen.setdefault(rank, [])

        def likelihoods(batch, batches=batches):
            batches.append(batch["input_ids"].tolist())
            return torch.ones(int((batch["labels"] != IGNORE).sum()))

        context = SimpleNamespace(
            settled=SimpleNamespace(per_device=1, max_length=64),
            config=SimpleNamespace(data=SimpleNamespace(packing=False)),
            machine=SimpleNamespace(
                rank=rank, tensor_parallel_size=2, data_parallel_size=2, data_parallel_rank=rank // 2
            ),
            collate=lambda: Collate(0),
        )
        module = SimpleNamespace(context=context, device="cpu", log_likelihoods=likelihoods)
        total += ForgettingCheck()._sums(SimpleNamespace(world_size=1), module, made)
    assert seen[0] == seen[1]
    assert seen[2] == seen[3] != seen[0]
    assert total.tolist() == [float(d.num_labels) for d in made]
