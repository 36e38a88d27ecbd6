"""The plugin in runs of its own: what every plugin must do, and what this one adds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tuneforge.testing import check_plugin
from tuneforge_sql.rows import sql_questions

ROOT = Path(__file__).parents[1]
SHORT = ("trainer.max_steps=2", "batch.effective=4", "samples.num=0", "trainer.devices=1", "task_recipe.num_executed=3")


@pytest.fixture
def tuneforge(tmp_path):
    """The command as it is typed, in an empty folder; returns its exit code, what it said and its run.json."""

    def call(*arguments):
        command = [sys.executable, "-m", "tuneforge", *arguments, f"hydra.run.dir={tmp_path / 'run'}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        record = tmp_path / "run" / "run.json"
        return done.returncode, done.stderr, json.loads(record.read_text()) if record.is_file() else {}

    return call


@pytest.fixture
def jsonl(tmp_path):
    """A user's own file, made of other columns too."""

    def write(**changes):
        rows = [{**row.fields, "note": 1, **changes} for row in sql_questions(count=6)]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return ["task_recipe=text_to_sql", "data=file", "data.path=rows.jsonl", *SHORT]

    return write


def test_it_conforms():
    passed = check_plugin(ROOT)
    assert "task_recipe=text_to_sql trains two steps, saves and reloads" in passed
    assert "data=sql_questions trains two steps, saves and reloads" in passed


def test_a_run_on_a_users_rows_executes_before_and_after(tuneforge, jsonl, tmp_path):
    code, said, record = tuneforge(*jsonl())
    assert code == 0, said
    for moment in ("before", "after"):
        assert 0 <= record["metrics"][moment]["eval/execution_accuracy"] <= 1
    assert record["data"]["format"] == "tuneforge_sql.format.text_to_sql"
    assert [p["name"] for p in record["plugins"]] == ["sql"]
    assert record["data"]["rows"] == 48
    shipped = ROOT / "src" / "tuneforge_sql" / "template.jinja"
    assert (tmp_path / "run" / "adapter" / "chat_template.jinja").read_text() == shipped.read_text()


def test_rows_that_nothing_can_be_run_for_are_told_before_the_weights_load(tuneforge, jsonl):
    code, said, record = tuneforge(*jsonl(sql="SELECT TOP 3 * FROM nowhere"))
    assert code == 2
    assert "task_recipe.num_executed" in said
    assert "Traceback" not in said
    assert record == {}
