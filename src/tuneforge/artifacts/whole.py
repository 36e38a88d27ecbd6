"""Checkpoint folders that are whole or not there, whatever files are in them.

A checkpoint is written beside its place, each file synced and hashed into a manifest, read back, and renamed once. A
folder without a manifest that fits it is no checkpoint. One process may write it, or all of a sharded run together.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tuneforge.artifacts.folder import read_json, write_json
from tuneforge.errors import TuneforgeError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Ranks:
    """The processes that write one folder together; alone where nothing is said."""

    first: bool = True
    """This is the one that makes and renames the folder."""
    barrier: Callable[[], object] = lambda: None
    """Returns when every process has called it."""


def path_of(checkpoints: Path, step: int) -> Path:
    """The checkpoint of an optimizer step."""
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was saved at: its name says it."""
    return int(checkpoint.name.partition("-")[2])


def found(checkpoints: Path) -> list[Path]:
    """Every checkpoint by step, oldest first, whole or not."""
    return sorted(p for p in checkpoints.glob("step-*") if p.is_dir())


@contextmanager
def written(target: Path, ranks: Ranks = Ranks()) -> Iterator[Path]:
    """A folder to write files into; it becomes `target` when the block has ended well in every process.

    Raises:
        TuneforgeError: it could not be written, or does not read back. What was at `target` before is still there.
    """
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        if ranks.first:
            _clear(temporary)
            temporary.mkdir(parents=True)
        ranks.barrier()
        yield temporary
        # Each process: rank 0 could not flush what another host still holds of a file on a network's disk.
        for file in _files(temporary):
            _sync(file)
        ranks.barrier()
        if ranks.first:
            _commit(temporary, target)
        ranks.barrier()
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room
        raise _not_written(target, error) from error


def damage(checkpoint: Path) -> str:
    """Why a folder is no whole checkpoint; "" where it is one."""
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no readable {MANIFEST}: it was never finished"
    for name, facts in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != facts["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes of {facts['bytes']:,}"
        if sha256(path) != facts["sha256"]:
            return f"{name} is not what was written: its sha256 differs from that in {MANIFEST}"
    return "" if files else f"{MANIFEST} lists no file"


def require(checkpoint: Path) -> None:
    """Nothing, where the checkpoint is whole.

    Raises:
        TuneforgeError: it is not.
    """
    wrong = damage(checkpoint)
    if wrong:
        raise TuneforgeError(
            "checkpoint-damaged",
            f"{checkpoint}: {wrong}",
            path="resume",
            fix=f"resume={checkpoint.parent.parent} goes on from the newest whole one",
        )


def newest(checkpoints: Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest whole checkpoint, and the newer ones passed over with what is wrong with them."""
    damaged: dict[Path, str] = {}
    for checkpoint in reversed(found(checkpoints)):
        wrong = damage(checkpoint)
        if not wrong:
            return checkpoint, damaged
        damaged[checkpoint] = wrong
    return None, damaged


def tidy(checkpoints: Path) -> None:
    """Finish what a kill left: a whole folder that lacked only its name gets it, other leavings go."""
    for temporary in checkpoints.glob(".step-*.tmp"):
        target = temporary.with_name(temporary.name[1 : -len(".tmp")])
        if not target.exists() and not damage(temporary):
            temporary.rename(target)
        else:
            shutil.rmtree(temporary)
    for old in checkpoints.glob(".step-*.old"):
        shutil.rmtree(old)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away: first its name, so that half of one is never taken for a checkpoint."""
    old = checkpoint.with_name(f".{checkpoint.name}.old")
    _clear(old)
    if checkpoint.exists():
        checkpoint.rename(old)
        shutil.rmtree(old)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit(temporary: Path, target: Path) -> None:
    facts = {
        f.relative_to(temporary).as_posix(): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in _files(temporary)
    }
    write_json(temporary / MANIFEST, {"files": facts})
    for folder in (p for p in (temporary, *temporary.rglob("*")) if p.is_dir()):
        _sync(folder)
    for file in _files(temporary):
        _forget(file)
    wrong = damage(temporary)
    if wrong:
        raise OSError(errno.EIO, f"read back after writing, {wrong}", str(target))
    if target.exists():
        # A kill between the two renames leaves a whole folder without its name, and `tidy` gives it that.
        old = target.with_name(f".{target.name}.old")
        _clear(old)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)
    _sync(target.parent)


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _clear(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _forget(path: Path) -> None:
    """Drop a synced file from the page cache, where the system can: what is read then comes from the disk."""
    if not hasattr(os, "posix_fadvise"):  # macOS
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _not_written(target: Path, error: OSError) -> TuneforgeError:
    last, _ = newest(target.parent)
    left = f"the last good checkpoint is {last.name}" if last else "there is no checkpoint yet"
    return TuneforgeError(
        "checkpoint-not-written",
        f"{target} could not be written: {error.strerror or error}; {left}",
        path="output_root",
        fix=f"free some space, or see who may write there; then resume={target.parent.parent}",
    )
