"""A run that was stopped goes on as if it had not been."""

import json
import math
import os

import pytest

from helpers import SHORT, same_adapter, shown, signal_at
from tuneforge.artifacts import whole
from tuneforge.artifacts.claim import Claim
from tuneforge.callbacks.checkpoints import Checkpoints

STEPS = (
    *SHORT,
    "samples.num=0",
    "trainer.max_steps=8",
    "batch.per_device=1",
    "trainer.val_check_interval=2",
    "optim.lr=2e-3",
)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(command, finished, monkeypatch, steps):
    options = (*STEPS, "samples.num=1")
    uninterrupted = finished(*options)
    signal_at(monkeypatch, steps)
    stopped = command(*options)
    assert stopped.code == 143
    assert stopped.record["status"] == "interrupted"
    assert stopped.record["exit"] == 143
    resumed = command(*options, f"resume={stopped.folder}")
    assert resumed.code == 0, resumed.err
    assert shown(stopped.metrics) == shown(uninterrupted.metrics)
    assert same_adapter(uninterrupted.folder, stopped.folder)


def test_auto_finds_the_unfinished_run_and_goes_on_in_its_folder(command, monkeypatch):
    signal_at(monkeypatch, 3)
    stopped = command(*STEPS, folder=None)
    moved = stopped.folder.parent / "outputs" / "day" / "time"
    moved.parent.mkdir(parents=True)
    stopped.folder.rename(moved)
    resumed = command(*STEPS, "resume=auto")
    assert resumed.code == 0
    assert f"resuming {moved}" in resumed.out
    assert json.loads((moved / "run.json").read_text())["status"] == "done"
    assert not resumed.folder.exists()


def test_auto_without_an_unfinished_run_starts_fresh_and_says_so(command):
    ran = command(*SHORT, "resume=auto")
    assert ran.code == 0
    assert "no unfinished run of this config, starting fresh" in ran.out


def test_auto_on_the_folder_of_a_run_that_is_done_does_nothing(command):
    """A job that is queued again after its end."""
    options = (*STEPS, "trainer.max_steps=2", "resume=auto")
    ran = command(*options)
    written = ran.record["written"]
    again = command(*options, folder=ran.folder)
    assert again.code == 0, again.err
    assert "is finished, and there is nothing left to do" in again.out
    assert ran.record["written"] == written
    assert command(*options, "seed=3", folder=ran.folder).code == 2


def test_a_run_that_is_running_is_left_to_its_process(command, monkeypatch):
    signal_at(monkeypatch, 3)
    stopped = command(*STEPS)
    with Claim(stopped.folder):
        named = command(*STEPS, f"resume={stopped.folder}")
        same_folder = command(*STEPS, folder=stopped.folder)
        found = command(*STEPS, "resume=auto", "trainer.max_steps=1", folder=stopped.folder)
    for ran in (named, same_folder, found):
        assert ran.code == 2
        assert f"is being written by process {os.getpid()} on " in ran.err
    assert f"resume=auto: {stopped.folder} is being written by" in found.out
    assert command(*STEPS, f"resume={stopped.folder}").code == 0


def test_two_runs_of_one_second_have_folders_of_their_own(command, tmp_path):
    folder = tmp_path / "2026-11-21" / "10-20-30"
    folder.mkdir(parents=True)
    ran = command(*STEPS, "trainer.max_steps=1", "trainer.val_check_interval=1", folder=folder)
    assert ran.code == 0, ran.err
    assert (folder.with_name("10-20-30-2") / "run.json").is_file()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_used_is_told(command, refused, tmp_path):
    (tmp_path / "file").write_text("")
    assert refused(f"hydra.run.dir={tmp_path / 'file' / 'run'}").startswith("error: output_root: ")
    other = tmp_path / "outputs" / "other" / "run.json"
    other.parent.mkdir(parents=True)
    other.write_text("[1]")
    assert "is no record of a run" in refused(f"resume={other.parent}")
    ran = command(*STEPS, "trainer.max_steps=1", "trainer.val_check_interval=1", "resume=auto")
    assert ran.code == 0, ran.err


def test_a_changed_config_is_refused_with_what_changed(command, monkeypatch, refused):
    signal_at(monkeypatch, 3)
    stopped = command(*STEPS)
    said = refused(*STEPS, f"output_root={stopped.folder.parent}", "optim.lr=1e-3", f"resume={stopped.folder}")
    assert "optim.lr (0.002 -> 0.001)" in said


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_step_may_be_spread_otherwise_while_its_rows_are_the_same(command, finished, monkeypatch, before, after):
    options = (*STEPS, "task_recipe.dropout=0")
    uninterrupted = finished(*options)
    assert uninterrupted.record["settled"]["accumulate"] == 2
    signal_at(monkeypatch, 3)
    stopped = command(*options, f"batch.per_device={before}")
    resumed = command(*options, f"batch.per_device={after}", f"resume={stopped.folder}")
    assert resumed.code == 0, resumed.err
    spread = [f"strategy=auto, {n} rows x {2 // n} x 1" for n in (after, before)]
    assert f"resume: {spread[0]} instead of {spread[1]}: the same rows a step" in resumed.out
    assert stopped.losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert [m["step"] for m in stopped.metrics] == [m["step"] for m in uninterrupted.metrics]


def test_a_run_whose_steps_were_rounded_to_whole_passes_is_refused(command, monkeypatch, refused):
    signal_at(monkeypatch, 3)
    stopped = command(*STEPS)
    record = stopped.record
    # As version 0.1 recorded `batch.effective=8 batch.per_device=4`.
    del record["settled"]["rows_per_step"]
    record["settled"] |= {"per_device": 4, "accumulate": 1}
    (stopped.folder / "run.json").write_text(json.dumps(record))
    said = refused(*STEPS, f"output_root={stopped.folder.parent}", f"resume={stopped.folder}")
    assert f"a step of {stopped.folder} takes 4 rows, and would take 2 now (strategy=auto, 1 rows x 2 x 1)" in said


def flip(checkpoint) -> None:
    """One bit of a checkpoint."""
    state = checkpoint / "state.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)


def test_a_damaged_newest_checkpoint_is_said_and_the_previous_one_used(command, monkeypatch):
    steps = (*STEPS, "callbacks.checkpoints.keep_last=3")
    signal_at(monkeypatch, 5)  # heard at the end of the step after it
    stopped = command(*steps)
    newest, _ = whole.newest(stopped.folder / "checkpoints")
    assert newest.name == "step-00000006"
    flip(newest)
    resumed = command(*steps, f"resume={stopped.folder}")
    assert resumed.code == 0
    assert f"warning: resume: {newest} is passed over: state.pt is not what was written: its sha256" in resumed.out
    assert "from step-00000004" in resumed.out


def test_a_damaged_best_checkpoint_is_said_and_the_next_best_used(command, monkeypatch):
    from tuneforge import finish

    restore = finish.restore_best
    used = []

    def damaging(trainer, module):
        (kept,) = [c for c in trainer.callbacks if isinstance(c, Checkpoints)]
        flip(kept.path(trainer, kept.ranked()[0]))
        restore(trainer, module)
        used.append(kept.best(trainer))

    monkeypatch.setattr(finish, "restore_best", damaging)
    ran = command(*STEPS, "callbacks.checkpoints.keep_best=2")
    assert ran.code == 0, ran.err
    assert "the best checkpoint, is passed over: state.pt is not what was written" in ran.out
    assert used[0].is_dir()


def test_a_checkpoint_can_be_named_and_later_ones_give_way(command):
    ran = command(*STEPS, "callbacks.checkpoints.keep_last=3")
    before, adapter = shown(ran.metrics), (ran.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    checkpoint = ran.folder / "checkpoints" / "step-00000004"
    again = command(*STEPS, "callbacks.checkpoints.keep_last=1", f"resume={checkpoint}")
    assert again.code == 0, again.err
    assert f"resuming {ran.folder} from step-00000004" in again.out
    assert shown(ran.metrics) == before
    assert (ran.folder / "adapter" / "adapter_model.safetensors").read_bytes() == adapter
    assert {p.name for p in whole.found(checkpoint.parent)} == {"step-00000008"}
    flip(checkpoint.with_name("step-00000008"))
    assert command(*STEPS, f"resume={checkpoint.with_name('step-00000008')}").code == 2


def test_a_finished_run_is_left_alone_unless_it_is_to_go_further(command):
    ran = command(*STEPS, "trainer.max_steps=4")
    written = ran.record["written"]
    again = command(*STEPS, "trainer.max_steps=4", f"resume={ran.folder}")
    assert again.code == 0
    assert "is finished, and there is nothing left to do" in again.out
    assert ran.record["written"] == written
    further = command(*STEPS, "trainer.max_steps=6", f"resume={ran.folder}")
    assert further.code == 0, further.err
    assert [m["step"] for m in ran.metrics if "train/loss" in m] == [1, 2, 3, 4, 5, 6]
    # The first step after the old end follows the new schedule: a cosine over 6 steps, of which 1 is warm-up.
    rates = [m["train/lr"] for m in ran.metrics if "train/loss" in m]
    assert rates[4:] == pytest.approx([2e-3 * 0.5 * (1 + math.cos(math.pi * (n - 1) / 5)) for n in (4, 5)])


@pytest.mark.parametrize("key", ["data.path", "data.split.eval_path", "data.replay.path"])
def test_changed_rows_are_refused_by_file_and_hash(command, refused, monkeypatch, tmp_path, key):
    files = {k: tmp_path / f"{k}.jsonl" for k in ("data.path", "data.split.eval_path", "data.replay.path")}
    for file in files.values():
        file.write_text("".join(json.dumps({"prompt": f"{i}+1?", "completion": f"{i + 1}"}) + "\n" for i in range(40)))
    options = ("data=file", *(f"{k}={f}" for k, f in files.items()), "data.replay.fraction=0.2", *STEPS)
    signal_at(monkeypatch, 3)
    stopped = command(*options)
    assert stopped.code == 143
    before = stopped.record["data"]["digests"][key]
    files[key].write_text(files[key].read_text().replace("+1", " + 1"))
    said = refused(*options, f"output_root={tmp_path / 'outputs'}", f"resume={stopped.folder}")
    assert said.startswith(f"error: {key}: the rows of {files[key]} are not those of {stopped.folder}")
    assert f"sha256 {before} then, " in said


@pytest.mark.parametrize("wanted", ["nowhere", "README.md"])
def test_what_cannot_be_resumed_is_refused(refused, wanted):
    assert "neither a run folder" in refused(f"resume={wanted}")
