"""Checkpoint folders that are whole or not there, whatever files are in them.

A checkpoint is written beside its place, each file synced and hashed into a manifest, read back, and renamed once. A
folder without a manifest that fits it is no checkpoint. One process may write it, or all of a run together.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuneforge.artifacts.folder import read_json, write_json
from tuneforge.errors import TuneforgeError

MANIFEST = "manifest.json"

T = TypeVar("T")

Facts = Mapping[str, Any]
"""Size and sha256 of a file, as the manifest lists them."""


@dataclass(frozen=True)
class Ranks:
    """The processes that write one folder together, and this one's place among them."""

    rank: int
    """The first makes and renames the folder."""
    share: Callable[[Any], Sequence[Any]]
    """Each process's value in all of them, in order of rank; returns when every process has called it."""


ALONE = Ranks(0, lambda value: [value])


def path_of(checkpoints: Path, step: int) -> Path:
    """The checkpoint of an optimizer step."""
    return checkpoints / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint was saved at: its name says it."""
    return int(checkpoint.name.partition("-")[2])


def found(checkpoints: Path) -> list[Path]:
    """Every checkpoint by step, oldest first, whole or not."""
    return sorted(p for p in checkpoints.glob("step-*") if p.is_dir())


def write(target: Path, fill: Callable[[Path], Sequence[Path]], ranks: Ranks = ALONE) -> None:
    """Have every process write its files into a folder, which becomes `target` when all have.

    Args:
        target: the checkpoint's folder.
        fill: writes this process's files into the folder it is given, and says which they are.
        ranks: the processes.

    Raises:
        TuneforgeError: in all processes: one could not write, or its files do not read back. What was at `target`
            before is still there.
    """
    temporary = target.with_name(f".{target.name}.tmp")

    def begin() -> None:
        if ranks.rank == 0:
            _clear(temporary)
            temporary.mkdir(parents=True)

    def end(files: Mapping[str, Facts]) -> None:
        if ranks.rank == 0:
            _commit(temporary, target, files)

    try:
        _all_do(ranks, begin)
        # Each process looks after its own files: no other can flush what its host still holds of them.
        kept = _all_do(ranks, lambda: {file.name: _keep(file) for file in fill(temporary)})
        _all_do(ranks, lambda: end({name: facts for of_one in kept for name, facts in of_one.items()}))
    except OSError as error:
        if ranks.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs the room
        raise _not_written(target, error) from error


def _all_do(ranks: Ranks, job: Callable[[], T]) -> Sequence[T]:
    """What `job` gives in each process, in all of them; where it fails in one, it fails in all: none waits in vain."""
    try:
        mine = (job(), "")
    except Exception as error:
        ranks.share((None, _why(error)))
        raise
    outcomes = ranks.share(mine)
    for rank, (_, why) in enumerate(outcomes):
        if why:
            raise OSError(errno.EIO, f"{why} (process {rank} of {len(outcomes)})")
    return [found for found, _ in outcomes]


def _why(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def damage(checkpoint: Path) -> str:
    """Why a folder is no whole checkpoint; "" where it is one."""
    try:
        files = read_json(checkpoint / MANIFEST)["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no readable {MANIFEST}: it was never finished"
    for name, facts in files.items():
        wrong = _missing(checkpoint / name, facts)
        if not wrong and sha256(checkpoint / name) != facts["sha256"]:
            wrong = f"{name} is not what was written: its sha256 differs from that in {MANIFEST}"
        if wrong:
            return wrong
    return "" if files else f"{MANIFEST} lists no file"


def _missing(path: Path, facts: Facts) -> str:
    """What of a file is not there; "" where it has its size."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    return "" if size == facts["bytes"] else f"{path.name} has {size:,} bytes of {facts['bytes']:,}"


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


def _keep(file: Path) -> Facts:
    """Bring a file that was written to the disk, and read it back from there."""
    _sync(file)
    facts = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    _forget(file)
    if sha256(file) != facts["sha256"]:
        raise OSError(errno.EIO, f"read back after writing, {file.name} is not what was written", str(file))
    return facts


def _commit(temporary: Path, target: Path, files: Mapping[str, Facts]) -> None:
    for name, facts in files.items():
        wrong = _missing(temporary / name, facts)
        if wrong:  # of another machine, whose disk this is not
            raise OSError(errno.EIO, wrong, str(temporary))
    write_json(temporary / MANIFEST, {"files": files})
    _sync(temporary)
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
        f"{target} could not be written: {_why(error)}; {left}",
        path="output_root",
        fix=f"free some space, or see who may write there; then resume={target.parent.parent}",
    )
