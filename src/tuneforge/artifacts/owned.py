"""Which files and folders a run may take away: those that it can prove to have written, and no others.

Proof is a list written beside them (a manifest, or the run's own list of its results), or the marker in a temporary
folder of a random name. What cannot be proven stays where it is, or is moved aside where its name is needed.
"""

import json
import os
import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tuneforge.artifacts.folder import (
    MARK,
    in_the_way,
    is_marked,
    is_marker_copied,
    kind_of,
    make_folder,
    mark,
    write_text,
)
from tuneforge.console import warn
from tuneforge.errors import Problem
from tuneforge.masking import mask

RESULTS = ".results.json"
"""In the run folder: files of its results, with size and time of the last change of each."""


def make_temporary(target: Path) -> Path:
    """A new, marked folder beside `target`, to be filled and renamed."""
    make_folder(target.parent)
    folder = _temporary_name(target)
    folder.mkdir()
    mark(folder, "temporary")
    return folder


def _temporary_name(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def unmark(folder: Path) -> None:
    """Take the marker away from a temporary folder that is finished."""
    (folder / MARK).unlink(missing_ok=True)


def temporaries(target_folder: Path, pattern: str) -> list[Path]:
    """The temporary folders in a folder, by a glob pattern of their targets' names."""
    return [p for p in target_folder.glob(f".{pattern}.tmp") if p.is_dir() and not p.is_symlink()]


def remove_temporary(folder: Path) -> None:
    """Delete a temporary folder and its content; a folder without its own marker is kept."""
    ours = is_marked(folder) and kind_of(folder) == "temporary" and not is_marker_copied(folder)
    if not ours and not (is_marked(folder) and holds_only(folder, {MARK})):
        return
    for path in [p for p in _below(folder) if p != folder / MARK]:
        path.unlink()
    (folder / MARK).unlink()  # last: a kill in between leaves a folder that still is ours
    _remove_empty(folder)


def remove_listed(folder: Path, names: Iterable[str]) -> None:
    """Take away these files of a folder, in this order, and the folder where it is then empty."""
    if folder.is_symlink():
        return
    for path in (folder / name for name in names):
        if path.is_file() and not path.is_symlink():
            path.unlink()
    _remove_empty(folder)


def remove_named(folder: Path, pattern: str) -> None:
    """Take away the files of a folder whose whole name fits, and the folder where it is then empty."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in folder.iterdir():
        if re.fullmatch(pattern, path.name) and path.is_file() and not path.is_symlink():
            path.unlink()
    _remove_empty(folder)


def holds_only(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder holds nothing beside these files, none of them a link."""
    return all(str(p.relative_to(folder)) in names and not p.is_symlink() for p in _below(folder))


def set_aside(path: Path) -> Path:
    """Rename a file or folder that this run did not write, with a warning; returns the new path."""
    number = 1
    while (aside := path.with_name(f"kept-{path.name}-{number}")).exists():
        number += 1
    path.rename(aside)
    message = f"{path} is not, or not wholly, of this run: it is kept as {aside}"
    warn(Problem("set-aside", message, fix="remove it yourself where you do not need it"))
    return aside


def put(temporary: Path, target: Path) -> None:
    """Give a finished folder its name in the run folder. What the run wrote there before goes.

    Files that the user has added stay; where one has the name of a new file, the old folder is moved aside.
    """
    before = _lists(target.parent).get(target.name, {})
    new = {str(p.relative_to(temporary)): _facts(p) for p in _below(temporary) if p.name != MARK}
    old = None
    if target.is_symlink():
        raise in_the_way(target)
    if target.exists():
        there = {str(p.relative_to(target)): _facts(p) for p in _below(target)} if target.is_dir() else {"": []}
        added = {name for name, facts in there.items() if before.get(name) != facts}
        if not added:
            mark(target, "temporary")  # a kill before it is gone leaves what `tidy` takes away
            old = target.rename(_temporary_name(target))
        elif added & {"", *new}:
            set_aside(target)
        else:
            remove_listed(target, there.keys() - added)
    lists = {**_lists(target.parent), target.name: new}
    write_text(target.parent / RESULTS, json.dumps(lists, indent=1) + "\n")
    _name(temporary, target, new)
    if old is not None:
        remove_temporary(old)


def put_text(root: Path, name: str, text: str) -> None:
    """Write a result file below `root`; an existing file that this run did not write is renamed first."""
    path = root / name
    was_ours = path.is_symlink() or not path.is_file() or _lists(root).get(name, {}).get("") == _facts(path)
    if not was_ours and path.read_bytes() != mask(text, pairs=False).encode():
        set_aside(path)
    write_text(path, text)
    lists = {**_lists(root), name: {"": _facts(path)}}
    write_text(root / RESULTS, json.dumps(lists, indent=1) + "\n")


def _name(temporary: Path, target: Path, new: Iterable[str]) -> None:
    """Rename the folder; where files that the user added keep the old one, rename each file into it."""
    unmark(temporary)
    if not target.exists():
        temporary.rename(target)
        return
    for name in new:
        make_folder((target / name).parent)
        (temporary / name).replace(target / name)
    _remove_empty(temporary)


def tidy(root: Path, names: Collection[str]) -> None:
    """Take away what a kill left of results of these names."""
    for name in names:
        for folder in temporaries(root, f"{name}.*"):
            remove_temporary(folder)


def _lists(root: Path) -> dict[str, dict[str, list[int]]]:
    try:
        found = json.loads((root / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # nothing is proven then, and nothing is taken away
    return found if isinstance(found, dict) else {}


def _facts(path: Path) -> list[int]:
    found = path.lstat()
    return [found.st_size, found.st_mtime_ns]


def _below(folder: Path) -> Iterator[Path]:
    """Every file and link in a folder and those in it; links are not followed."""
    for at, folders, files in os.walk(folder):
        yield from (Path(at) / n for n in files)
        yield from (Path(at) / n for n in folders if (Path(at) / n).is_symlink())


def _remove_empty(folder: Path) -> None:
    for at, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # not empty: what is in it is not ours
            Path(at).rmdir()
