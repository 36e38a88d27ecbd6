"""The list at the end, what fails it, and runs in which nothing is wrong."""

from types import SimpleNamespace

import numpy as np
import pytest

from guards.conftest import FAST, write_rows
from helpers import SHORT
from tuneforge.callbacks.quality_gates import QualityGates
from tuneforge.compose import compose
from tuneforge.schema.training import Batch


def gates(ran):
    return {g["name"]: (g["passed"], g["value"]) for g in ran.record["gates"]}


def test_a_healthy_short_run_of_the_defaults_fires_no_guard(command):
    ran = command(*SHORT, "trainer.max_steps=8", "batch.effective=32", "trainer.val_check_interval=4")
    assert ran.code == 0
    assert "warning" not in ran.out
    assert {name: g["count"] for name, g in ran.record["guards"].items()} == {
        "nan_guard": 0, "spike_guard": 0, "overfit_guard": 0, "underfit_guard": 0, "data_guard": 0,
        "waste_guard": 0, "forgetting_check": 0, "generation_watch": 0,
    }  # fmt: skip
    passed = gates(ran)
    assert len(passed) == 8
    assert [name for name, (good, _) in passed.items() if not good] == ["forgetting within 5%", "samples to read"]
    assert passed["forgetting within 5%"][0] is None  # so short a run is not checked
    assert passed["samples to read"] == (None, "1")  # and 50 are to be read before it is used
    assert ran.out.count("\npass ") == 6
    report = (ran.folder / "report.html").read_text()
    assert "Quality gates" in report
    told = passed["eval loss fell steadily"][1]
    assert told.endswith(", lower than the one before at 2 of 2 evaluations")
    assert told in report.replace("&gt;", ">")


@pytest.mark.parametrize(
    ("losses", "after", "passed"),
    [([3.5, 3.2, 3.3, 3.1], 3.1, True), ([3.0, 3.5, 3.6, 3.7], 3.0, False), ([4.2, 4.1], 4.1, False), ([], 3.0, True)],
)
def test_a_loss_that_rises_again_has_not_fallen_steadily(losses, after, passed):
    asked = QualityGates()
    asked.load_state_dict({"losses": losses})
    assert asked._fell({"eval/loss": 4.0}, {"eval/loss": after}).passed is passed


def test_the_gate_of_the_batch_compares_with_what_was_asked_and_with_the_recipe():
    def gate(documents, asked, fewest=32, per_row=5.0, tokens=None):
        settled = SimpleNamespace(documents_per_step=documents)
        rows = SimpleNamespace(documents_per_row=per_row, num_tokens=np.full(3, 100 * per_row))
        config = SimpleNamespace(batch=Batch(effective=asked, effective_tokens=tokens))
        context = SimpleNamespace(settled=settled, train_rows=rows, config=config)
        return QualityGates(min_batch=fewest)._batch(context).passed

    assert gate(31.5, 32)
    assert not gate(41.5, 32)
    assert not gate(41.5, 32, per_row=20.75)  # two whole sequences, where one and a half are wanted
    assert not gate(60.0, 32, per_row=60.0)
    assert not gate(16.0, 16)
    assert not gate(24.0, 24)
    assert gate(40.0, 1, tokens=4096)
    assert not gate(40.0, 1, tokens=2048)
    small_data = compose(["task_recipe=small_data"])
    assert gate(16.0, small_data.config.batch.effective, small_data.tree["callbacks"]["quality_gates"]["min_batch"])


def test_an_eval_row_in_the_train_rows_fails_and_stops_where_asked(command, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    leaked = write_rows(tmp_path / "leaked.jsonl", 8)  # the first eight of them
    options = (
        *FAST,
        f"data.path={rows}",
        f"data.split.eval_path={leaked}",
        "data.split.by=auto",
        "trainer.max_steps=4",
    )
    ran = command(*options, "callbacks.quality_gates.action=stop")
    assert ran.code == 3
    assert gates(ran)["no eval row in train"] == (False, "8 of 8 eval documents are in the train rows")
    assert gates(ran)["effective batch"] == (False, "8.0 documents")
    assert gates(ran)["samples to read"] == (None, "0")
    assert "no eval row in train: 8 of 8" in ran.err
    assert ran.record["status"] == "refused"
    assert "FAIL     no eval row in train" in ran.out

    again = command(*options, "callbacks.quality_gates.action=stop", f"resume={ran.folder}", folder=ran.folder)
    assert again.code == 2
    assert "callbacks.quality_gates refused its result: " in again.err
    assert "no eval row in train" in again.err


def test_a_finding_of_a_guard_fails_its_line(command, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 24)
    ran = command(*FAST, f"data.path={rows}", "trainer.max_steps=4", "optim.lr=1e-30")
    assert ran.code == 0
    assert gates(ran)["no guard found anything"] == (False, "underfit_guard 1")
    report = (ran.folder / "report.html").read_text()
    assert "nothing-moves" in report
