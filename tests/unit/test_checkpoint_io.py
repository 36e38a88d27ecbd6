"""A checkpoint is whole or it is not there."""

import os
import resource
import subprocess
import sys

import pytest
import torch

from tuneforge.artifacts.checkpoint_io import AtomicCheckpointIO, is_whole, newest_whole
from tuneforge.artifacts.folder import read_metrics, write_text
from tuneforge.errors import TuneforgeError

STATE = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3}


def save(folder, step: int):
    path = folder / f"step-{step:08d}.ckpt"
    AtomicCheckpointIO().save_checkpoint(STATE, path)
    return path


def test_what_is_saved_comes_back(tmp_path):
    path = save(tmp_path, 1)
    assert is_whole(path)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["state_dict"]["w"], STATE["state_dict"]["w"])


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "no manifest"])
def test_damage_is_noticed_and_the_previous_one_is_used(tmp_path, damage):
    good, bad = save(tmp_path, 1), save(tmp_path, 2)
    content = bytearray(bad.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        bad.write_bytes(content)
    elif damage == "no manifest":
        bad.with_suffix(".json").unlink()
    else:
        bad.write_bytes(content[: len(content) // 2 if damage == "truncate" else 0])
    assert not is_whole(bad)
    assert newest_whole(tmp_path) == good
    with pytest.raises(TuneforgeError, match="incomplete or damaged"):
        AtomicCheckpointIO().load_checkpoint(bad)


def test_a_pickle_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": Evil()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path):
    """In a child whose files may not grow: the write fails as it does on a full disk."""
    good = save(tmp_path, 1)
    code = (
        "import resource, signal, sys, torch\n"
        "from pathlib import Path\n"
        "from tuneforge.artifacts.checkpoint_io import AtomicCheckpointIO\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "try:\n"
        "    AtomicCheckpointIO().save_checkpoint({'w': torch.zeros(10000)}, Path(sys.argv[1]))\n"
        "except (OSError, RuntimeError):\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(good)], capture_output=True, text=True, check=False)
    assert done.returncode == 7, done.stderr
    assert is_whole(good)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


def test_text_is_replaced_whole_and_a_cut_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_text(path, '{"step": 1}\n{"step": 2}\n{"st')
    assert [m["step"] for m in read_metrics(path)] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
