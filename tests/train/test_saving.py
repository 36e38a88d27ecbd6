"""A save that fails is never silent, and what was saved before stays."""

import pytest

from helpers import SHORT
from tuneforge.artifacts import checkpoint_io, whole
from tuneforge.callbacks.checkpoints import Checkpoints

STEPS = (*SHORT, "samples.num=0", "trainer.max_steps=8", "trainer.val_check_interval=2", "optim.lr=2e-3")


@pytest.fixture
def failing(monkeypatch):
    """Have the saves of some steps fail as on a full disk."""

    original = checkpoint_io.FileIO

    def at(*steps: int) -> None:
        class Full(original):
            def write(self, data):
                if any(f"step-{s:08d}" in str(self.name) for s in steps):
                    raise OSError(28, "No space left on device")
                return super().write(data)

        monkeypatch.setattr(checkpoint_io, "FileIO", Full)

    return at


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_save_that_fails_stops_the_run_and_the_last_good_one_stays(command, failing, asynchronous):
    failing(4)
    ran = command(*STEPS, f"callbacks.checkpoints.asynchronous={asynchronous}")
    assert ran.code == 2, ran.err
    assert "Traceback" not in ran.err
    assert "step-00000004 could not be written: No space left on device; the last good checkpoint is step-00000002" in (
        ran.err
    )
    assert (ran.record["status"], ran.record["exit"]) == ("failed", 2)
    assert [p.name for p in whole.found(ran.folder / "checkpoints")] == ["step-00000002"]
    # At the next step, not at the next save.
    assert max(m["step"] for m in ran.metrics) <= 5
    failing()
    assert command(*STEPS, f"resume={ran.folder}").code == 0


def test_with_on_error_warn_the_run_goes_on_and_the_best_is_one_that_is_there(command, failing):
    failing(6, 8)
    ran = command(*STEPS, "callbacks.checkpoints.on_error=warn")
    assert ran.code == 0, ran.err
    assert ran.out.count("could not be written: No space left on device") == 2
    assert [p.name for p in whole.found(ran.folder / "checkpoints")] == ["step-00000004"]
    evaluated = {m["step"]: m["eval/loss"] for m in ran.metrics if "eval/loss" in m}
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(evaluated[4], rel=1e-6)


def test_a_folder_that_cannot_be_written_to_is_told(command, tmp_path, monkeypatch):
    """A file is where the folder should be: also root, who may write anywhere, cannot."""

    def obstruct(self, *_):
        (tmp_path / "run" / "checkpoints").write_text("")

    monkeypatch.setattr(Checkpoints, "on_train_start", obstruct)
    ran = command(*STEPS, folder=tmp_path / "run")
    assert ran.code == 2
    assert "could not be written: Not a directory; there is no checkpoint yet" in ran.err


@pytest.mark.parametrize("keep", [(1, 1), (2, 1), (1, 3)])
def test_the_best_and_the_newest_are_kept_and_the_best_is_exported(command, keep):
    best, last = keep
    # A rate at which the loss rises again: the best is not the last.
    options = (
        *STEPS,
        "optim.lr=0.1",
        f"callbacks.checkpoints.keep_best={best}",
        f"callbacks.checkpoints.keep_last={last}",
    )
    ran = command(*options)
    assert ran.code == 0, ran.err
    evaluated = {m["step"]: m["eval/loss"] for m in ran.metrics if "eval/loss" in m and m["step"]}
    ranked = sorted(evaluated, key=evaluated.__getitem__)
    wanted = {*ranked[:best], *sorted(evaluated)[-last:]}
    assert {whole.step_of(p) for p in whole.found(ran.folder / "checkpoints")} == wanted
    assert ran.record["metrics"]["after"]["eval/loss"] == pytest.approx(min(evaluated.values()), rel=1e-6)
