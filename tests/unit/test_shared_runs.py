"""A run that tests share is made once, and whoever writes into it is found."""

import pytest

from helpers import SHORT
from shared_runs import SharedRuns


def test_the_same_options_are_one_run(finished):
    one, two = finished(*SHORT), finished("trainer.max_steps=1", *reversed(SHORT))
    assert one.code == 0, one.err
    assert one == two
    assert one.record["settled"]["num_steps"] == 4
    assert "eval loss " in one.out


def test_whoever_writes_into_it_is_found(tmp_path, monkeypatch):
    made = []

    def run(self, folder, arguments):
        (folder / "run").mkdir()
        (folder / "run" / "run.json").write_text("{}")
        made.append(arguments)
        return whole(self, folder, ["--version"])

    whole = SharedRuns._run
    monkeypatch.setattr(SharedRuns, "_run", run)
    runs = SharedRuns(tmp_path / "runs")
    ran = runs("seed=1", "seed=2")
    copy = ran.copied(tmp_path / "copy")
    (copy.folder / "run.json").write_text("changed")
    assert runs("seed=2").folder == ran.folder
    assert made == [["seed=2"]]
    (ran.folder / "run.json").write_text("changed")
    with pytest.raises(AssertionError, match=r"wrote into .* shared run of seed=2: \['run.json'\]"):
        runs("seed=2")
