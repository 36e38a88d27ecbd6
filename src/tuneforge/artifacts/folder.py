"""The run folder, and writing into it: never half a file, never through a link, never beside the folder."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuneforge.artifacts.kept import METRICS, NUMBER, read_lines
from tuneforge.errors import EXIT_OF, TuneforgeError
from tuneforge.masking import mask, masked_texts

STOPPED = "stopped the run"
"""What run.json says a guard did at a finding that ended the run."""

MARK = ".tuneforge.json"
"""The first file in each folder that a run or sweep makes; nothing else is taken for such a folder."""

RESERVE = ".reserve"
RESERVED = 2**20
"""Bytes: more than run.json has, samples included."""


class RunFolder:
    """Paths of one run's files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def checkpoints(self) -> Path:
        """Resumable checkpoints."""
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        """One JSON object a logged step."""
        return self.root / "metrics.jsonl"

    @property
    def record(self) -> Path:
        """The registry record of the run."""
        return self.root / "run.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    def result(self, is_adapter: bool) -> Path:
        """Where `from_pretrained` finds the result."""
        return self.root / ("adapter" if is_adapter else "model")


def is_marked(folder: Path) -> bool:
    """Whether a run or sweep made this folder."""
    return (folder / MARK).is_file() and not (folder / MARK).is_symlink()


def kind_of(folder: Path) -> str:
    """What the marker of a folder calls it (run, sweep or temporary); "" where it has none that can be read."""
    return str(_marker(folder).get("kind", ""))


def is_marker_copied(folder: Path) -> bool:
    """Whether the marker was written into another folder, and copied or moved into this one by its file."""
    inode = folder.stat().st_ino
    return bool(_marker(folder).get("folder", inode) != inode)


def _marker(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / MARK).read_text(encoding="utf-8")) if is_marked(folder) else {}
    except (OSError, ValueError, RecursionError):
        return {}  # a kill can leave an empty one
    return found if isinstance(found, dict) else {}


def mark(folder: Path, kind: str) -> bool:
    """Write the marker, with a new id and the folder's inode; False where there is one."""
    facts = {"made_by": "tuneforge", "kind": kind, "id": secrets.token_hex(8), "folder": folder.stat().st_ino}
    text = json.dumps(facts) + "\n"
    try:
        descriptor = os.open(folder / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except FileExistsError:
        return False
    try:
        _write_all(descriptor, text.encode())
    except OSError:
        (folder / MARK).unlink()
        raise
    return True


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_bytes` does, secrets masked."""
    write_bytes(path, mask(text, pairs=False).encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write atomically: a new temporary file in the same folder, synced, then renamed over the old one.

    Raises:
        TuneforgeError: the path, or a folder between the run folder and it, is a link.
    """
    temporary = f".{path.name}.{secrets.token_hex(4)}.tmp"
    with _holding(path) as folder:
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            _write_all(os.open(temporary, flags, 0o644, dir_fd=folder), content)
            os.replace(temporary, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=folder)
            raise


def append_text(path: Path, text: str) -> None:
    """Write at the end of a file, which is made where it is missing.

    Raises:
        TuneforgeError: the path, or a folder between the run folder and it, is a link.
    """
    with _holding(path) as folder:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        _write_all(os.open(path.name, flags, 0o644, dir_fd=folder), text.encode(), sync=False)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it; one that exists is left as it is.

    Raises:
        TuneforgeError: it, or a folder between the run folder and it, is a link.
    """
    with _holding(path / MARK):
        pass


def require_no_link(path: Path) -> None:
    """Nothing, where a library can write the path itself: it is no link, and no folder below the run's is one.

    Raises:
        TuneforgeError: one is.
    """
    with _holding(path):
        pass


@contextmanager
def _holding(path: Path) -> Iterator[int]:
    """A descriptor of the folder that a file is to be in, reached from the run folder without following a link."""
    folder = path.parent.absolute()
    base = next((f for f in (folder, *folder.parents) if is_marked(f)), None)
    if base is None:  # not in a run folder: the user named this place, and the links on the way to it
        folder.mkdir(parents=True, exist_ok=True)
        base = folder
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        at = base
        for part in folder.relative_to(base).parts:
            at = at / part
            descriptor = _step(descriptor, part, at)
        _refuse_link(descriptor, path)
        yield descriptor
    except OSError as error:
        if error.filename is None or not os.path.isabs(error.filename):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        os.close(descriptor)


def _step(descriptor: int, part: str, at: Path) -> int:
    """From a folder into one of its folders, which is made where it is missing."""
    if part == "..":
        raise TuneforgeError("outside-the-run", f"{at} leads out of the run folder", fix="name a place inside of it")
    with suppress(FileExistsError):
        os.mkdir(part, dir_fd=descriptor)
    try:
        inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
    except OSError as error:
        if at.is_symlink():
            raise in_the_way(at) from error
        raise
    os.close(descriptor)
    return inner


def _refuse_link(descriptor: int, path: Path) -> None:
    with suppress(OSError):
        target = os.readlink(path.name, dir_fd=descriptor)
        raise in_the_way(path, target)


def in_the_way(path: Path, target: str = "") -> TuneforgeError:
    """The error of a link where a run is to write."""
    return TuneforgeError(
        "link-in-the-way",
        f"{path} is a link to {target or os.readlink(path)}, and a run writes through no link",
        path="output_root",
        fix="remove the link, or choose another run folder",
    )


def _write_all(descriptor: int, content: bytes, *, sync: bool = True) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def reserve(root: Path) -> None:
    """Hold some room on the disk, for the last words of a run that ends because there is no other."""
    if not (root / RESERVE).exists():
        write_bytes(root / RESERVE, bytes(RESERVED))


def release_reserve(root: Path) -> None:
    """Give that room back."""
    path = root / RESERVE
    if path.is_file() and not path.is_symlink() and path.stat().st_size == RESERVED:
        path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON, atomically."""
    write_text(path, json.dumps(masked_texts(value), indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an object."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def write_exit(record: Path, code: int) -> None:
    """Correct a record: of a process that cannot write its own end, or whose end followed from another's."""
    with suppress(FileNotFoundError):
        facts = read_json(record)
        if facts["exit"] != code:
            status = "interrupted" if code in EXIT_OF.values() else "failed"
            write_json(record, {**facts, "status": status, "exit": code})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, none where there is no file; a last line cut short by a kill is left out.

    Raises:
        TuneforgeError: another line is damaged.
    """
    return read_lines(path, {**METRICS, "step": NUMBER})
