"""Several processes on this machine, each started from the resolved config and never from the command line.

Lightning's own launcher would rebuild the command from `sys.argv`: under a sweep each rank would then compose, and
sample, for itself. Here the parent composes once and torchrun's agent starts, watches and ends the children.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

from tuneforge.artifacts.folder import RunFolder, read_json
from tuneforge.compose import Composed, structure, used_plugins
from tuneforge.errors import EXIT_BUG
from tuneforge.plugins import registry
from tuneforge.plugins.discovery import discover
from tuneforge.provenance import Origin
from tuneforge.resume import Place
from tuneforge.schema import Config


def run_processes(composed: Composed, place: Place, devices: int) -> int:
    """Train in `devices` processes; returns the exit code of the run, which torchrun itself flattens to 1."""
    with tempfile.TemporaryDirectory(prefix="tuneforge-") as folder:
        handover, outcome = Path(folder) / "run.json", Path(folder) / "exit"
        handover.write_text(json.dumps(pack(composed, place)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"),
            *("-m", "tuneforge.worker", str(handover), str(outcome)),
        ]
        # torchrun otherwise sets one thread a process and says so on the console.
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // devices))
        # A session of its own: signals reach the children through us alone, and each of them once.
        child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": threads}, start_new_session=True)
        code = _wait(child)
        return int(outcome.read_text()) if outcome.is_file() else (code or EXIT_BUG)


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Wait for the agent, passing SIGINT and SIGTERM on to it; it passes them on to its children."""
    before = {number: signal.signal(number, lambda n, _: child.send_signal(n)) for number in (SIGINT, SIGTERM)}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pack(composed: Composed, place: Place) -> dict[str, Any]:
    """What a child needs, as JSON."""
    return {
        "tree": composed.tree,
        "choices": composed.choices,
        "overrides": composed.overrides,
        "origins": {k: o.as_dict() for k, o in composed.origins.items()},
        "pickers": composed.pickers,
        "config_dirs": [str(d) for d in composed.config_dirs],
        "run_dir": str(composed.run_dir),
        "base": str(composed.base) if composed.base else None,
        "folder": str(place.folder.root),
        "checkpoint": str(place.checkpoint) if place.checkpoint else None,
    }


def unpack(path: Path) -> tuple[Composed, Place]:
    """The opposite of `pack`, from its file."""
    packed = read_json(path)
    registry.use(discover())
    origins = {k: Origin.of_dict(o) for k, o in packed["origins"].items()}
    composed = Composed(
        config=structure(Config, packed["tree"]),
        tree=packed["tree"],
        choices=packed["choices"],
        overrides=tuple(packed["overrides"]),
        origins=origins,
        run_dir=Path(packed["run_dir"]),
        pickers=packed["pickers"],
        config_dirs=tuple(map(Path, packed["config_dirs"])),
        plugins=used_plugins(packed["choices"], packed["tree"]),
        base=Path(packed["base"]) if packed["base"] else None,
    )
    checkpoint = Path(packed["checkpoint"]) if packed["checkpoint"] else None
    return composed, Place(RunFolder(Path(packed["folder"])), checkpoint)
