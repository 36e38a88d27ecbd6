"""Plain Hydra sweeps run, and are refused before the first job where they cannot."""

import json

import pytest

from helpers import SHORT
from tuneforge.cli import run


def test_each_value_is_a_run_of_its_own(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = run(["-m", "optim.lr=1e-4,1e-3", *SHORT, "samples.num=0", f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    assert code == 0, capfd.readouterr().err
    rates = []
    for job in "01":
        lines = [json.loads(x) for x in (tmp_path / "sweep" / job / "metrics.jsonl").read_text().splitlines()]
        rates.append(max(m["train/lr"] for m in lines if "train/lr" in m))
    assert rates[1] == pytest.approx(10 * rates[0])


def test_a_swept_key_that_does_not_exist_is_refused_before_the_first_job(tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refused("-m", "optim.lrr=1e-4,1e-3")
    assert "did you mean 'lr'" in said
    assert list(tmp_path.iterdir()) == []
