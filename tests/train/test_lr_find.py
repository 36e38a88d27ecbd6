"""`lr_find`: a rate to paste, a plot, and no weights."""

import json
import shlex
from types import SimpleNamespace

import pytest

from tuneforge.artifacts.folder import MARK
from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.errors import RefusedError
from tuneforge.lr_find import smoothed, suggestion

FEW = ("data.max_rows=300", "data.split.max_eval_rows=8", "batch.effective=8", "samples.num=0", "lr_find.steps=40")


def test_it_suggests_a_rate_that_learns_and_leaves_a_plot(command):
    ran = command("lr_find", *FEW, "lr_find.lowest=1e-5")
    assert ran.code == 0, ran.err
    found = json.loads((ran.folder / "lr_find.json").read_text())
    assert 1e-4 < found["suggested"] < 0.3
    assert found["rates"] == sorted(found["rates"])
    assert found["diverged"] or found["rates"][-1] == pytest.approx(1.0)
    assert f"optim.lr={found['suggested']:g}" in ran.out
    assert (ran.folder / "lr_find.png").read_bytes().startswith(b"\x89PNG")
    page = (ran.folder / "report.html").read_text()
    assert f"suggested {found['suggested']:.4g}" in page or f"optim.lr={found['suggested']:g}</code>" in page
    assert page.count('<path class="main"') == 1
    assert "http" not in page.replace("http-equiv", "")
    assert {p.name for p in ran.folder.iterdir()} == {MARK, "lr_find.json", "lr_find.png", "report.html"}
    tuned = command(*FEW[:-1], f"optim.lr={found['suggested']:g}", "trainer.max_steps=8")
    # Of the same rows: train losses are each of other rows.
    before, after = (tuned.record["metrics"][moment]["eval/loss"] for moment in ("before", "after"))
    assert after < 0.95 * before


def test_a_model_that_does_not_learn_has_no_rate(command):
    ran = command("lr_find", *FEW, "lr_find.lowest=1e-12", "lr_find.highest=1e-11", "lr_find.steps=6")
    assert ran.code == 3
    assert "the loss fell at no rate of the range" in ran.err
    assert not ran.folder.exists()


def test_the_command_to_paste_keeps_all_but_the_rate_and_the_test(tmp_path, monkeypatch, capsys):
    """Its options: the folder of the user's own, and what it was started from."""
    (tmp_path / "my options" / "optim").mkdir(parents=True)
    (tmp_path / "my options" / "optim" / "mine.yaml").write_text("defaults: [adamw]\neps: 1e-7\n")
    found = SimpleNamespace(rates=[1e-4, 1e-3], smoothed=[2.0, 1.0], diverged=False, suggested=1e-3)
    monkeypatch.setattr("tuneforge.lr_find.find", lambda *_: found)
    monkeypatch.setattr("tuneforge.data.source.read", lambda *_: None)
    monkeypatch.setattr("tuneforge.data.source.slice_of", lambda *_: None)
    monkeypatch.setattr("tuneforge.rerun.compose_from", lambda base, *rest: compose(*rest))
    monkeypatch.chdir(tmp_path)
    dropped = ["optim.lr=1", "++lr_find={steps: 9}", "lr_find.steps=9", "resume=auto", "hydra.run.dir=there"]
    flags = ["--config-dir", "my options", "--from", "outputs/a run"]
    assert run(["lr_find", *flags, "optim=mine", "+optim.lr_later=1", *dropped]) == 2  # no such key, of this one alone
    assert "optim.lr_later" in capsys.readouterr().err
    assert run(["lr_find", *flags, "optim=mine", "seed=3", *dropped]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("next ")]
    assert shlex.split(line)[1:] == ["python", "-m", "tuneforge", *flags, "optim=mine", "seed=3", "optim.lr=0.001"]


def test_the_steepest_fall_is_found():
    rates = [10 ** (-6 + 0.2 * i) for i in range(30)]
    losses = (
        [5.0] * 10 + [5.0 - 0.1 * i for i in range(5)] + [4.0, 3.0, 2.0] + [1.9] * 6 + [3.0, 6.0, 9.0, 9.0, 9.0, 9.0]
    )
    found = suggestion(rates, losses)
    late = [5.0] * 10 + [4.0, 3.0, 2.9, *(2.9 - 0.01 * i for i in range(17))]
    assert suggestion(rates, late) == pytest.approx(rates[10], rel=0.7)
    assert found == pytest.approx(min(rates[16], rates[17] / 10), rel=0.7)
    with pytest.raises(RefusedError):
        suggestion(rates, [5.0] * 30)
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
