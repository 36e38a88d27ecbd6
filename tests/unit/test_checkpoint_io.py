"""A checkpoint is whole or it is not there."""

import os
import shutil
import threading
import time

import pytest
import torch

from tuneforge.artifacts import parts, whole
from tuneforge.artifacts.background import Background
from tuneforge.artifacts.checkpoint_io import STATE, AtomicCheckpointIO, load
from tuneforge.artifacts.folder import mark, read_json, read_metrics, write_text
from tuneforge.artifacts.parts import Part
from tuneforge.errors import TuneforgeError

CONTENT = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}


def save(folder, step: int):
    path = whole.path_of(folder, step)
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_what_is_saved_comes_back_and_lies_under_its_name_alone(tmp_path):
    path = save(tmp_path, 123)
    assert path == tmp_path / "step-00000123"
    assert whole.step_of(path) == 123
    assert {p.name for p in path.iterdir()} == {"manifest.json", STATE}
    assert whole.damage(path) == ""
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"], CONTENT["state_dict"]["w"])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("flip", "sha256 differs"),
        ("truncate", "bytes of"),
        ("empty", "has 0 bytes of"),
        ("missing", "state.pt is missing"),
        ("no manifest", "never finished"),
        ("half a manifest", "never finished"),
        ("empty manifest", "lists no file"),
    ],
)
def test_damage_is_noticed_and_the_previous_one_is_used(tmp_path, damage, said):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    state, manifest = bad / STATE, bad / whole.MANIFEST
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    {
        "flip": lambda: state.write_bytes(content),
        "truncate": lambda: state.write_bytes(content[: len(content) // 2]),
        "empty": lambda: state.write_bytes(b""),
        "missing": state.unlink,
        "no manifest": manifest.unlink,
        "half a manifest": lambda: manifest.write_bytes(manifest.read_bytes()[:20]),
        "empty manifest": lambda: manifest.write_text('{"files": {}}'),
    }[damage]()
    assert said in whole.damage(bad)
    assert whole.newest(tmp_path) == (good, {bad: whole.damage(bad)})
    with pytest.raises(TuneforgeError, match="step-00000002") as raised:
        AtomicCheckpointIO().load_checkpoint(bad)
    assert raised.value.problems[0].code == "checkpoint-damaged"


def test_a_pickle_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    path = tmp_path / "step-00000001"
    AtomicCheckpointIO().save_checkpoint({"x": Evil()}, path)
    with pytest.raises(Exception, match="more than tensors and plain containers"):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.fixture
def full_disk(monkeypatch):
    """Files of more than 2000 bytes fail as on a full disk."""
    from tuneforge.artifacts import checkpoint_io

    class Full(checkpoint_io.FileIO):
        def write(self, data):
            if self.tell() + len(data) > 2000:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(checkpoint_io, "FileIO", Full)


def test_a_full_disk_leaves_the_old_checkpoint_and_no_litter(tmp_path, request):
    good = save(tmp_path, 1)
    request.getfixturevalue("full_disk")
    with pytest.raises(TuneforgeError, match="No space left on device; the last good checkpoint is step-00000001"):
        save(tmp_path, 2)
    with pytest.raises(TuneforgeError, match="No space left"):
        save(tmp_path, 1)
    assert whole.damage(good) == ""
    assert [p.name for p in tmp_path.iterdir()] == [good.name]


def test_what_does_not_read_back_is_never_renamed(tmp_path, monkeypatch):
    """A disk that loses a byte after the sync."""
    good = save(tmp_path, 1)
    forget = whole._forget

    def losing(path):
        forget(path)
        if path.name == STATE:
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(whole, "_forget", losing)
    with pytest.raises(TuneforgeError, match="read back after writing, state"):
        save(tmp_path, 2)
    assert whole.found(tmp_path) == [good]


@pytest.mark.parametrize("finished", [True, False])
def test_a_kill_between_two_renames_loses_nothing(tmp_path, finished):
    good = save(tmp_path, 1)
    left = tmp_path / ".step-00000002.tmp"
    shutil.copytree(good, left)
    shutil.copytree(good, tmp_path / ".step-00000002.old")
    if not finished:
        (left / whole.MANIFEST).unlink()
        mark(left, "temporary")  # which it has until it is finished
    whole.tidy(tmp_path)
    assert [p.name for p in whole.found(tmp_path)] == ["step-00000001", *["step-00000002"] * finished]
    assert not list(tmp_path.glob(".*"))


def together(size: int, job) -> list[BaseException | None]:
    """Threads stand in for ranks; what each ended in."""
    barrier, said, ended = threading.Barrier(size), [None] * size, [None] * size

    def run(rank: int) -> None:
        def share(value):
            said[rank] = value
            barrier.wait(10)
            found = list(said)
            barrier.wait(10)
            return found

        try:
            job(whole.Ranks(rank, share))
        except Exception as error:
            ended[rank] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ended


def test_several_processes_write_one_folder_together(tmp_path):
    """The folder has its name only when the slowest has written."""
    target = tmp_path / "step-00000001"

    def job(ranks):
        def fill(folder):
            time.sleep(0.05 * ranks.rank)
            assert not target.exists()
            (folder / f"shard-{ranks.rank}.bin").write_bytes(bytes(100 * ranks.rank))
            return [folder / f"shard-{ranks.rank}.bin"]

        whole.write(target, fill, ranks)

    assert together(3, job) == [None] * 3
    assert whole.damage(target) == ""
    assert {n: f["bytes"] for n, f in read_json(target / whole.MANIFEST)["files"].items()} == {
        "shard-0.bin": 0,
        "shard-1.bin": 100,
        "shard-2.bin": 200,
    }


ROWS, ONE = torch.arange(21.0).reshape(7, 3), torch.ones(1, 3)


def save_in_parts(path, size: int, background=None) -> list[BaseException | None]:
    """A weight of 7 rows and one of a single row, dealt out as FSDP2 does, and what is not split."""
    rest = {"state_dict": {"plain": torch.ones(2)}, "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}}]}

    def own(tensor, rank):
        step = -(-len(tensor) // size)
        first = min(rank * step, len(tensor))
        held = tensor[first : first + step]
        return Part(held, (slice(first, first + len(held)), *map(slice, [0] * (held.ndim - 1), held.shape[1:])))

    def job(ranks):
        tensors = {"weight/w": ROWS, "weight/one": ONE, "state/0/exp_avg": -ROWS}
        split = {name: own(tensor, ranks.rank) for name, tensor in tensors.items()}
        AtomicCheckpointIO(background).save_part(rest, split, path, ranks)

    return together(size, job)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_are_read_whole_or_by_rows_whoever_wrote_them(tmp_path, size):
    path = tmp_path / "step-00000001"
    assert save_in_parts(path, size) == [None] * size
    assert len(list(path.glob("part-*"))) == size
    assert whole.damage(path) == ""
    back = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(back["state_dict"]["w"], ROWS)
    assert torch.equal(back["state_dict"]["one"], ONE)
    assert torch.equal(back["state_dict"]["plain"], torch.ones(2))
    assert torch.equal(back["optimizer_states"][0]["state"][0]["exp_avg"], -ROWS)
    assert float(back["optimizer_states"][0]["state"][0]["step"]) == 3
    weights = load(path, lambda name, size, dtype: torch.empty(size, dtype=dtype) if name == "weight/w" else None)
    assert torch.equal(weights["state_dict"]["w"], ROWS)
    assert weights["optimizer_states"][0]["state"][0].keys() == {"step"}


def test_a_flipped_bit_in_one_part_is_noticed(tmp_path):
    path = tmp_path / "step-00000001"
    save_in_parts(path, 2)
    part = path / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    assert "part-00001.safetensors is not what was written" in whole.damage(path)
    part.unlink()
    assert whole.damage(path) == "part-00001.safetensors is missing"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a bug")])
def test_a_part_that_cannot_be_written_fails_the_save_in_all_and_names_the_process(tmp_path, monkeypatch, rank, error):
    good, bad = tmp_path / "step-00000001", tmp_path / "step-00000002"
    save_in_parts(good, 2)
    write = parts.write

    def failing(file, own):
        if file.name == parts.file_of(rank):
            raise error
        write(file, own)

    monkeypatch.setattr(parts, "write", failing)
    ended = save_in_parts(bad, 2)
    assert isinstance(ended[rank], type(error) if isinstance(error, ValueError) else TuneforgeError)
    assert isinstance(ended[1 - rank], TuneforgeError)
    said = (
        f"{error.strerror if isinstance(error, OSError) else error} (process {rank} of 2); the last good checkpoint is"
    )
    assert said in str(ended[1 - rank])
    assert whole.found(tmp_path) == [good]
    assert isinstance(error, ValueError) or [p.name for p in tmp_path.iterdir()] == [good.name]


def test_safetensors_own_errors_are_the_disks(tmp_path):
    with pytest.raises(OSError, match="directory"):
        parts.write(tmp_path / "nowhere" / "part", {"w": Part(ROWS, tuple(slice(0, n) for n in ROWS.shape))})


def test_an_asynchronous_save_is_of_the_moment_it_was_asked_for(tmp_path, monkeypatch):
    may_write = threading.Event()
    save_now = torch.save
    monkeypatch.setattr(torch, "save", lambda *a: (may_write.wait(10), save_now(*a)))
    background = Background(asynchronous=True)
    io, weight, path = AtomicCheckpointIO(background), torch.ones(10), tmp_path / "step-00000001"
    io.save_checkpoint({"w": weight, "nested": [{"w": weight}]}, path)
    weight.zero_()  # training goes on
    assert not path.exists()
    may_write.set()
    background.wait()
    back = io.load_checkpoint(path)
    assert back["w"].sum() == back["nested"][0]["w"].sum() == 10


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_failed_save_is_told_once_and_keeps_what_it_was_to_replace(tmp_path, full_disk, asynchronous):
    background = Background(asynchronous)
    io, old = AtomicCheckpointIO(background), tmp_path / "step-00000001"
    old.mkdir()
    io.save_checkpoint(CONTENT, tmp_path / "step-00000002")
    io.remove_checkpoint(old)
    with pytest.raises(TuneforgeError, match="No space left"):
        background.wait()
    background.wait()
    background.check()
    assert old.exists()
    io.remove_checkpoint(old)
    background.wait()
    assert not old.exists()


def test_text_is_replaced_whole_and_a_cut_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_text(path, '{"step": 1}\n{"step": 2}\n{"st')
    assert [m["step"] for m in read_metrics(path)] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
