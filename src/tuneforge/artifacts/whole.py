"""Checkpoint folders that are whole or not there, whatever files are in them.

A checkpoint is written beside its place, each file synced and hashed into a manifest, read back, and renamed once. A
folder without a manifest that fits it is no checkpoint. One process may write it, or all of a run together.
"""

import errno
import hashlib
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tuneforge.artifacts import owned
from tuneforge.artifacts.folder import in_the_way, write_json
from tuneforge.artifacts.kept import Shape, read_object
from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.shell import typed

MANIFEST = "manifest.json"
_SHAPE: Shape = {"files": {"*": {"bytes": int, "sha256": str}}}

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
    named = [p for p in checkpoints.glob("step-*") if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(p for p in named if p.is_dir() and not p.is_symlink())


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
    temporary = target  # until the first process has made one
    try:
        made = _all_do(ranks, lambda: str(owned.make_temporary(target)) if ranks.rank == 0 else "")
        temporary = Path(made[0])
        # Each process looks after its own files: no other can flush what its host still holds of them.
        kept = _all_do(ranks, lambda: {file.name: _keep(file) for file in fill(temporary)})
        files = {name: facts for of_one in kept for name, facts in of_one.items()}
        _all_do(ranks, lambda: _commit(temporary, target, files) if ranks.rank == 0 else None)
    except OSError as error:
        if ranks.rank == 0 and temporary != target:
            with suppress(OSError):
                owned.remove_temporary(temporary)  # a full disk needs the room
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
    files = _listed(checkpoint)
    if files is None:
        return f"it has no readable {MANIFEST}: it was never finished"
    if not files:
        return f"{MANIFEST} lists no file"
    for name, facts in files.items():
        wrong = _missing(checkpoint / name, facts)
        if not wrong and sha256(checkpoint / name) != facts["sha256"]:
            wrong = f"{name} is not what was written: its sha256 differs from that in {MANIFEST}"
        if wrong:
            return wrong
    return ""


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
            fix=f"{typed('resume', checkpoint.parent.parent)} goes on from the newest whole one",
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
    for temporary in owned.temporaries(checkpoints, "step-*"):
        target = temporary.with_name(temporary.name[1:].partition(".")[0])
        if not target.exists() and not damage(temporary):
            owned.unmark(temporary)
            temporary.rename(target)
        else:
            owned.remove_temporary(temporary)
    for old in checkpoints.glob(".step-*.old"):
        _take_away(old)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away: first its name, so that half of one is never taken for a checkpoint.

    Without a manifest, or with files that are not in it, it is not ours to take away: it stays, which is told.
    """
    if not checkpoint.is_dir():
        return
    if not _is_ours(checkpoint):
        message = f"{checkpoint} is left where it is: its {MANIFEST} does not list what it holds"
        warn(Problem("set-aside", message, fix="remove it yourself where you do not need it"))
        return
    _take_away(checkpoint.rename(_old_name(checkpoint)))


def _old_name(checkpoint: Path) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{secrets.token_hex(4)}.old")


def _is_ours(checkpoint: Path) -> bool:
    """Whether a folder holds nothing but what its manifest lists; an empty one holds nothing to lose."""
    if checkpoint.is_symlink():
        return False
    listed = _listed(checkpoint)
    return owned.holds_only(checkpoint, {MANIFEST, *listed} if listed else ())


def _take_away(checkpoint: Path) -> None:
    """Remove what the manifest lists, and the manifest last: a kill in between leaves what can be gone on with."""
    listed = _listed(checkpoint)
    owned.remove_listed(checkpoint, [*listed, MANIFEST] if listed else ())


def _listed(checkpoint: Path) -> Mapping[str, Facts] | None:
    """The files of a checkpoint by its manifest; None where there is none, or it is no manifest."""
    try:
        files: dict[str, Facts] = read_object(checkpoint / MANIFEST, _SHAPE, "manifest")["files"]
    except TuneforgeError:
        return None
    sound = all(Path(name).name == name and len(facts["sha256"]) == 64 for name, facts in files.items())
    return files if sound else None


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
    if target.is_symlink():
        raise in_the_way(target)
    write_json(temporary / MANIFEST, {"files": files})
    owned.unmark(temporary)
    _sync(temporary)
    old = None
    if target.exists() and not _is_ours(target):
        owned.set_aside(target)
    elif target.exists():
        # A kill between the two renames leaves a whole folder without its name, and `tidy` gives it that.
        old = target.rename(_old_name(target))
    temporary.rename(target)
    if old is not None:
        _take_away(old)
    _sync(target.parent)


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
    message = f"{target} could not be written: {_why(error)}; {left}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = f"free some space; then {typed('resume', target.parent.parent)}"
        return TuneforgeError("disk-full", message, path="output_root", fix=fix)
    fix = f"see who may write there; then {typed('resume', target.parent.parent)}"
    return TuneforgeError("checkpoint-not-written", message, path="output_root", fix=fix)
