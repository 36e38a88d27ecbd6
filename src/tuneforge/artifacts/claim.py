"""One process at a time in a run folder: a lock that the system drops when its holder ends, however it ends."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneforge.artifacts.folder import MARK, in_the_way, is_marked, kind_of, mark, read_json, write_json
from tuneforge.console import warn

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class HeldError(Exception):
    """Another process runs in the folder."""

    def __init__(self, root: Path, holder: str) -> None:
        super().__init__(f"{root} is being written by {holder}")


class ForeignError(Exception):
    """What is at the place is not a run's or sweep's, and nothing is written there."""

    def __init__(self, root: Path, what: str) -> None:
        super().__init__(f"{root} {what}")


class Claim:
    """A held folder of a run or sweep, made where it is not there. Released, it is gone again if nothing was written.

    Its marker is written before anything else. A folder that holds files and no marker is left alone.
    A child that inherits `descriptor` holds it too, so that the folder stays claimed while one of them lives.
    """

    def __init__(self, root: Path, *, kind: str = "run", new: bool = False, known: bool = False) -> None:
        """Hold `root`.

        Args:
            root: the folder.
            kind: what the marker calls it.
            new: it must not be there yet.
            known: the caller has read in it that it is such a folder, written before there were markers.

        Raises:
            HeldError: another process does.
            ForeignError: it is no folder, or holds files that no run wrote.
            TuneforgeError: a link in it leads out of it.
            FileExistsError: it is there, and `new` is set.
        """
        self.root = root
        self._made = [p for p in (root, *root.parents) if not p.exists() and not p.is_symlink()]
        root.parent.mkdir(parents=True, exist_ok=True)
        try:
            root.mkdir()
        except FileExistsError:
            if new:
                raise
            _refuse_foreign(root, kind, known)
        self.was_marked = is_marked(root)
        """Another claim was here, and is over."""
        try:
            mark(root, kind)
            self.descriptor = _locked(root)
            mark(root, kind)  # the holder before may have taken it away when it left an empty folder
        except OSError:
            self._remove_made()
            raise

    def release(self, *, unused: bool = False) -> None:
        """Let others have it. `unused`: nothing was written, and the marker goes where this claim has written it."""
        if not self.was_marked and (unused or {p.name for p in self.root.iterdir()} <= {MARK, NAME}):
            (self.root / MARK).unlink(missing_ok=True)
        (self.root / NAME).unlink(missing_ok=True)
        os.close(self.descriptor)
        self._remove_made()

    def _remove_made(self) -> None:
        for folder in self._made:
            with suppress(OSError):  # not empty: something was written
                folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_held(root: Path) -> bool | None:
    """Whether a process holds the folder; None where that cannot be known. Nothing is written."""
    try:
        descriptor = os.open(root / NAME, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        return False if error.errno in (errno.ENOENT, errno.ENOTDIR) else None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return False


def status_of(root: Path, status: str) -> str:
    """The status that a folder's record has; a run that seems to run and whose process is gone was interrupted."""
    gone = status == "running" and is_held(root) is False
    return "interrupted (its process is gone)" if gone else status


def write_gone(root: Path) -> None:
    """Correct the record of a run whose process is gone without a word: SIGKILL, or a machine that went away.

    Only on the machine that it ran on: locks of others are not seen on every shared disk.
    """
    record = root / "run.json"
    with suppress(OSError, ValueError, HeldError, ForeignError):
        text = (root / NAME).read_text(encoding="utf-8") if (root / NAME).exists() else ""
        if text and not text.endswith(f" on {socket.gethostname()}"):
            return
        if is_marked(root) and read_json(record)["status"] == "running" and is_held(root) is False:
            with Claim(root, known=True):
                facts = read_json(record)
                if facts["status"] == "running":
                    write_json(record, {**facts, "status": "interrupted"})


def _refuse_foreign(root: Path, kind: str, known: bool) -> None:
    """Nothing, where the folder is empty, has a marker of this kind, or is `known`, and no link leads out of it."""
    if root.is_symlink():
        raise ForeignError(root, f"is a link to {os.readlink(root)}")
    if not root.is_dir():
        raise ForeignError(root, "is a file")
    if is_marked(root) and kind_of(root) not in ("", kind):
        raise ForeignError(root, f"is the folder of a {kind_of(root)}")
    if not known and not is_marked(root):
        found = sorted(p.name for p in root.iterdir())
        if found:
            more = f" and {len(found) - 5} more" if len(found) > 5 else ""
            raise ForeignError(root, f"holds files that no run wrote: {', '.join(found[:5])}{more}")
    home = Path(os.path.realpath(root))
    for at, folders, files in os.walk(root):
        for path in (Path(at) / name for name in (*folders, *files)):
            # wandb keeps links to its newest files; those stay in the folder.
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(home):
                raise in_the_way(path)


def _locked(root: Path) -> int:
    path = root / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode() or "another process"
            os.close(descriptor)
            raise HeldError(root, holder) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            warn(f"{root} is on a disk without locks ({error.strerror}): nothing else may run in it meanwhile")
            return descriptor
        # A holder that went in between has taken the file away, and what is locked here has no name any more.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        os.close(descriptor)
