"""Finished runs that several tests look at: each is made once in a whole test run, whatever worker asks first."""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from fork_server import Commands
from helpers import Ran


class SharedRuns:
    """Options of a command -> the run that they give. Nobody writes into its folder: `Ran.copied` first."""

    def __init__(self, root: Path) -> None:
        """`root`: a folder that all workers of this test run have."""
        root.mkdir(parents=True, exist_ok=True)
        self.root = root
        # As it is now: what a test sets for itself must not reach a run that others get.
        self.environment = dict(os.environ)

    def __call__(self, *arguments: str) -> Ran:
        """The command with these arguments, in a process of its own; of an option given twice the last one counts."""
        last = {a.partition("=")[0]: a for a in arguments}
        folder = self.root / hashlib.sha256(json.dumps(sorted(last.values())).encode()).hexdigest()[:16]
        folder.mkdir(exist_ok=True)
        ending = folder / "ending.json"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not ending.exists():
                ending.write_text(json.dumps(self._run(folder, [*last.values()])))
        told = json.loads(ending.read_text())
        changed = {name for name, _ in set(map(tuple, told["files"])) ^ set(_files(folder / "run"))}
        assert not changed, f"a test wrote into {folder}, the shared run of {' '.join(arguments)}: {sorted(changed)}"
        return Ran(told["code"], folder / "run", told["out"], told["err"])

    def _run(self, folder: Path, arguments: list[str]) -> dict[str, object]:
        where = [f"output_root={folder / 'outputs'}", f"hydra.run.dir={folder / 'run'}"]
        command = [sys.executable, "-m", "tuneforge", *arguments, *where]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with Commands(command, text=True, cwd=folder, env=self.environment, **pipes) as child:
            out, err = child.communicate()
        return {"code": child.returncode, "out": out, "err": err, "files": _files(folder / "run")}


def _files(folder: Path) -> list[tuple[str, int]]:
    """Every file below, and when it was last written to."""
    return sorted((str(f.relative_to(folder)), f.stat().st_mtime_ns) for f in folder.rglob("*") if f.is_file())
