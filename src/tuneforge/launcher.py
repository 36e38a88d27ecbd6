"""Several processes on this machine, each started from the resolved config and never from the command line.

Lightning's own launcher would rebuild the command from `sys.argv`: under a sweep each rank would then compose, and
sample, for itself. Here the parent composes once and torchrun's agent starts, watches and ends the children.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from tuneforge.artifacts.folder import RunFolder, read_json, write_json
from tuneforge.compose import Composed, structure, used_plugins
from tuneforge.errors import EXIT_BUG, EXIT_OF
from tuneforge.plugins import registry
from tuneforge.plugins.discovery import discover
from tuneforge.provenance import Origin
from tuneforge.resume import Place
from tuneforge.schema import Config

PR_SET_PDEATHSIG = 1
"""prctl(2)."""


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
        agent = subprocess.Popen(
            command,
            env={**os.environ, "OMP_NUM_THREADS": threads},
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509  there are no other threads yet
        )
        signalled = _wait(agent, Path(folder), devices)
        if outcome.is_file():
            code = int(outcome.read_text())
        else:
            code = EXIT_OF[signalled] if signalled else (agent.returncode or EXIT_BUG)
    _write_exit(place.folder.record, code)
    return code


def _wait(agent: "subprocess.Popen[bytes]", folder: Path, devices: int) -> signal.Signals | None:
    """Wait for torchrun's agent, passing signals on to its workers; returns the last one.

    Not to the agent: it would kill workers whose step and checkpoint take more than 30 seconds.
    """
    received: list[signal.Signals] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        workers = [int(p.read_text()) for p in folder.glob("pid-*")]
        if len(workers) < devices:
            agent.terminate()
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    before = {number: signal.signal(number, forward) for number in EXIT_OF}
    try:
        agent.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return received[-1] if received else None


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when its parent dies, however it dies: no orphan trains on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _write_exit(record: Path, code: int) -> None:
    """A worker that was killed has written nothing of its end."""
    facts = read_json(record) if record.is_file() else {"exit": code}
    if facts["exit"] != code:
        write_json(record, {**facts, "status": "failed", "exit": code})


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
