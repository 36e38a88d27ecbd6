"""Several processes on this machine, each started from the resolved config and never from the command line.

Lightning's own launcher would rebuild the command from `sys.argv`: under a sweep each process would then compose, and
sample, for itself. Here the parent composes once, and starts, signals and ends its children.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tuneforge.artifacts.claim import Claim
from tuneforge.artifacts.folder import write_exit
from tuneforge.children import GRACE, Child, end_with_parent, passing_on
from tuneforge.compose import Composed
from tuneforge.errors import EXIT_BUG, EXIT_OF, EXIT_OK, Problem, print_problems
from tuneforge.exchange import LISTENING
from tuneforge.handover import pack, pack_place
from tuneforge.resume import Place
from tuneforge.world import AGENT_STORE, World


def run_processes(composed: Composed, place: Place, devices: int) -> int:
    """Train in `devices` processes; returns the exit code of the run, which is that of the first process."""
    with (
        tempfile.TemporaryDirectory(prefix="tuneforge-") as folder,
        # The first process serves at it: no other program can take the port in between.
        socket.create_server(("127.0.0.1", 0)) as listening,
    ):
        handover = Path(folder) / "run.json"
        handover.write_text(json.dumps({"config": pack(composed), "place": pack_place(place)}), encoding="utf-8")
        port = listening.getsockname()[1]
        worlds = [World(rank, devices, rank, devices, "127.0.0.1", port) for rank in range(devices)]
        shared = [listening.fileno(), *([place.claim.descriptor] if isinstance(place.claim, Claim) else [])]
        children = [_start(world, handover, shared if world.rank == 0 else []) for world in worlds]
        code = _wait(children)
    write_exit(place.folder.record, code)
    return code


def _start(world: World, handover: Path, shared: Sequence[int]) -> Child:
    """One process; the first shares the listening socket, and holds the run folder as long as it lives."""
    environment = {**os.environ, **world.variables(), AGENT_STORE: "False"}
    # Else every process would start as many threads as there are cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // world.size)))
    if shared:
        environment[LISTENING] = str(shared[0])
    return subprocess.Popen(
        [sys.executable, "-m", "tuneforge.worker", str(handover)],
        env=environment,
        pass_fds=shared,
        # A session of its own: signals reach the children through us alone, and each of them once.
        start_new_session=True,
        preexec_fn=end_with_parent,  # noqa: PLW1509  there are no other threads yet
    )


def _wait(children: Sequence[Child]) -> int:
    """Pass signals on until every child has ended; after a failure those that hang are killed."""
    failed_at: float | None = None
    with passing_on(lambda: children) as received:
        try:
            while True:
                codes = [child.poll() for child in children]  # each is asked: a failure may come from any
                if failed_at is None and any(codes):
                    failed_at = time.monotonic()
                    if not received:
                        _tell({rank: code for rank, code in enumerate(codes) if code and code < 0}, len(children))
                if None not in codes:
                    break
                if failed_at is not None and time.monotonic() > failed_at + GRACE:
                    _kill(children)
                time.sleep(0.02)
        finally:
            _kill(children)
    ended = [child.returncode for child in children]
    if not any(ended):
        return EXIT_OK
    if ended[0] < 0 and received:
        return EXIT_OF[signal.Signals(received[-1])]
    return next((code for code in ended if code > 0), EXIT_BUG)


def _tell(lost: dict[int, int], size: int) -> None:
    """Name the processes that something killed; one that failed by itself has said why."""
    for rank, code in lost.items():
        message = f"process {rank} of {size} was ended by {signal.Signals(-code).name}"
        fix = "mostly the host's memory ran out (see dmesg); resume=auto goes on from the last checkpoint"
        print_problems([Problem("process-killed", message, fix=fix)])


def _kill(children: Sequence[Child]) -> None:
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()
