"""One process at a time in a run folder: a lock that the system drops when its holder ends, however it ends."""

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tuneforge.console import warn

NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class HeldError(Exception):
    """Another process runs in the folder."""

    def __init__(self, root: Path, holder: str) -> None:
        super().__init__(f"{root} is being written by {holder}")


class Claim:
    """A held run folder, made where it is not there. Released, it is gone again if nothing was written.

    A child that inherits `descriptor` holds it too, so that the folder stays claimed while one of them lives.
    """

    def __init__(self, root: Path, *, new: bool = False) -> None:
        """Hold `root`; `new`: it must not be there yet.

        Raises:
            HeldError: another process does.
            FileExistsError: it is there, and `new` is set.
        """
        self.root = root
        self._made = [p for p in (root, *root.parents) if not p.exists()]
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(exist_ok=not new)
        self.descriptor = _locked(root)

    def release(self) -> None:
        """Let others have it."""
        (self.root / NAME).unlink(missing_ok=True)
        os.close(self.descriptor)
        for folder in self._made:
            with suppress(OSError):  # not empty: something was written
                folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _locked(root: Path) -> int:
    path = root / NAME
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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
