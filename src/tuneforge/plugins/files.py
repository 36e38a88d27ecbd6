"""Who could have written a plugin's files: links, modes and owners of all of them, and of every folder above.

A dropped plugin is found by where it lies: whoever can write there chooses what runs. Trusted are this user, root,
and the owner of tuneforge's own files, who could change those too.
"""

import os
import stat
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tuneforge.plugins.plugin import Plugin, Trouble

MAX_FILES = 10_000
"""Of a plugin's package and what is beside it; the project's own have fewer than twenty."""


def file_troubles(plugin: Plugin, folder: Path) -> Iterator[Trouble]:
    """What is wrong with the files of a plugin, and with the folders above those of a dropped one."""
    root = folder if plugin.installed else plugin.origin.resolve()
    # A dropped package is imported from the folder around it, and can import what lies beside it.
    around = folder if plugin.installed else folder.parent
    inside = sorted(islice(_importable(around), MAX_FILES + 1))
    if len(inside) > MAX_FILES:
        yield Trouble(f"{around} holds more than {MAX_FILES:,} files", "leave only the package's own files there")
        return
    if os.name != "posix":
        return
    between = [p for p in folder.parents if p.is_relative_to(root)]
    above = [] if plugin.installed else [plugin.origin.absolute(), *root.parents, *plugin.origin.absolute().parents]
    told: set[Path] = set()
    for path in dict.fromkeys([root, *between, folder, root / "pyproject.toml", *inside, *above]):
        trouble = _trouble(path, root, above=path in above, installed=plugin.installed)
        if trouble and path.resolve() not in told:
            told.add(path.resolve())
            yield trouble


def _importable(folder: Path) -> Iterator[Path]:
    """Files and folders below one that Python could import or read; not those of hidden folders and environments.

    With the compiled ones: Python runs what is in `__pycache__` instead of the source beside it.
    """
    for at, folders, names in os.walk(folder):
        folders[:] = [n for n in folders if not n.startswith(".") and not (Path(at) / n / "pyvenv.cfg").is_file()]
        yield from (Path(at) / name for name in (*folders, *names))


def _trouble(path: Path, root: Path, *, above: bool, installed: bool) -> Trouble | None:
    """What is wrong with one file or folder."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        if not above and not path.resolve().is_relative_to(root):
            cause = f"{path} is a link out of the plugin's folder, to {path.resolve()}"
            return Trouble(cause, "copy the file there")
    elif not stat.S_ISDIR(found.st_mode) and not stat.S_ISREG(found.st_mode):
        return Trouble(f"{path} is neither a file nor a folder", f"rm {path}")
    elif found.st_mode & stat.S_IWOTH and not (above and found.st_mode & stat.S_ISVTX):
        # With the sticky bit (/tmp), others can add to a folder, and not replace what is in it.
        return Trouble(f"everyone on this machine may write into {path}", f"chmod o-w {path}")
    if not installed and found.st_uid not in trusted_owners():
        cause = f"{path} belongs to the user with the number {found.st_uid}, who could change what runs here"
        if "__pycache__" in path.parts:
            return Trouble(cause, f"rm -r {path}")
        return Trouble(cause, f"copy the plugin into a folder of yours, or: chown {os.getuid()} {path}")
    return None


def trusted_owners() -> frozenset[int]:
    """Numbers of the users whose files may be run."""
    return frozenset({0, os.getuid(), Path(__file__).stat().st_uid})
