"""One process of several, whoever started it: what all agree on before training, and how they end together."""

import os
import socket
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from torch.distributed import DistError

from tuneforge.artifacts.claim import NAME as LOCK
from tuneforge.artifacts.folder import write_exit
from tuneforge.children import GRACE
from tuneforge.compose import Composed
from tuneforge.console import quiet_libraries
from tuneforge.data import source
from tuneforge.errors import EXIT_BUG, EXIT_OK, LostError, Problem, TuneforgeError, as_record, print_problems
from tuneforge.exchange import Exchange
from tuneforge.handover import fingerprint, pack, pack_place, unpack, unpack_place
from tuneforge.rules.strategies import one_process
from tuneforge.train import announce, read_and_choose, train
from tuneforge.versions import versions

LOOK = 2.0
"""Seconds between two looks at whether another process has failed."""

if TYPE_CHECKING:
    from tuneforge.data.source import Source
    from tuneforge.resume import Place
    from tuneforge.world import World


class _StoppedError(Exception):
    """The first process has told why; the others end in its code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def join(composed: Composed | Exception | None, world: "World") -> int:
    """Run as one of the processes that torchrun or SLURM started; returns the exit code, the same in all of them.

    The first process brings a config, or the error that composing it ended in; the others bring nothing.

    Raises:
        TuneforgeError: in the first process alone; it stands for all.
    """
    quiet_libraries()
    try:
        with Exchange(world) as exchange:
            return _join(exchange, composed)
    except _StoppedError as stopped:
        return stopped.code
    except TuneforgeError as error:  # what the first process cannot tell: it is not reached
        if world.rank == 0:
            raise
        print_problems(error.problems)
        return error.exit_code


def _join(exchange: Exchange, brought: Composed | Exception | None) -> int:
    first = exchange.world.rank == 0
    with _telling(exchange, "config"):
        if isinstance(brought, Exception):
            raise brought
        if brought is not None:
            _check_world(brought, exchange.world)
            announce(brought)
    packed = _told(exchange, "config", pack(brought) if brought else None)
    problems: list[Problem] = []
    with _reporting_failure(exchange):
        composed = brought or unpack(packed)
        with _telling(exchange, "place"):
            rows, place = read_and_choose(composed) if first else (_rows(composed, problems), None)
        packed = _told(exchange, "place", pack_place(place) if place else None)
        place = place or unpack_place(packed)
        report = {} if place.finished else _report(composed, rows, place, problems)
    with place.claim:
        if place.finished:
            return EXIT_OK
        reports = exchange.to_first("report", report)
        with _telling(exchange, "go"):
            _compare(reports)
        _told(exchange, "go", {})
        return take_part(exchange, composed, place, rows)


def take_part(exchange: Exchange, composed: Composed, place: "Place", rows: "Source | None" = None) -> int:
    """Train; returns the run's exit code: that of the first process, or of the first to fail, which tells why."""
    first = exchange.world.rank == 0
    try:
        with _watching(exchange, place):
            rows = rows or source.read(composed.config.data, composed.tree["data"], composed.config.seed)
            code = train(composed, rows, place)
        # Until the first process has written the run's end, a launcher must see no other fail: it would kill it.
        return int(exchange.from_first("exit", code))
    except (Exception, SystemExit) as error:  # a library's sys.exit, too
        code = _failed(exchange, error)
        if first:
            write_exit(place.folder.record, code)
            exchange.from_first("exit", code)
        return code


@contextmanager
def _watching(exchange: Exchange, place: "Place") -> Iterator[None]:
    """End this process where another one has failed and this one does not notice.

    While the process group is made, and in a collective of NCCL, a process waits half an hour for one that is gone, and
    only some launchers end it.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK):
            try:
                failed = exchange.failure()
            except (DistError, TuneforgeError):  # the serving process is gone, which the process group notices
                return
            if failed is not None and failed["rank"] != exchange.world.rank:
                if not over.wait(GRACE):
                    if exchange.world.rank == 0:
                        write_exit(place.folder.record, failed["exit"])
                    sys.stdout.flush()
                    os._exit(failed["exit"])  # the main thread is in a call of torch that no signal interrupts
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(LOOK)


def _failed(exchange: Exchange, error: BaseException) -> int:
    """The exit code of the first failure; whose it is, tells: what comes in the others follows from it."""
    code = error.exit_code if isinstance(error, TuneforgeError) else EXIT_BUG
    mine = {"rank": exchange.world.rank, "exit": code}
    try:
        cause = exchange.claim("failed", mine)
    except DistError:  # the first process is gone, and whoever started it says so
        return code
    if cause == mine:
        if not isinstance(error, TuneforgeError) or os.environ.get("TUNEFORGE_DEBUG") == "1":
            traceback.print_exception(error)
        if isinstance(error, TuneforgeError):
            print_problems(error.problems)
        if exchange.world.rank:
            print(f"  this was {_name(exchange.world.rank, exchange.world.size)}", file=sys.stderr)  # noqa: T201
    return int(cause["exit"])


@contextmanager
def _telling(exchange: Exchange, name: str) -> Iterator[None]:
    """The others wait for a value of this name: where the first process fails instead, they get its exit code."""
    try:
        yield
    except BaseException as error:
        if exchange.world.rank == 0:
            code = error.exit_code if isinstance(error, TuneforgeError) else EXIT_BUG
            exchange.from_first(name, {"exit": code})
        raise


@contextmanager
def _reporting_failure(exchange: Exchange) -> Iterator[None]:
    """The first process waits for a report of each other one: where that fails, its failure is the report."""
    try:
        yield
    except _StoppedError:
        raise
    except BaseException as error:  # SystemExit of a library, and Ctrl-C
        if exchange.world.rank:
            failed = {"host": socket.gethostname(), "failed": f"{type(error).__name__}: {error}"}
            with suppress(DistError):  # the first process is gone as well
                exchange.to_first("report", failed)
        raise


def _told(exchange: Exchange, name: str, value: dict[str, Any] | None) -> dict[str, Any]:
    """What the first process says, in all of them; its failure ends the others."""
    told: dict[str, Any] = exchange.from_first(name, value)
    if "exit" in told:
        raise _StoppedError(told["exit"])
    return told


def _rows(composed: Composed, problems: list[Problem]) -> "Source | None":
    """This machine's rows; what is wrong with them is for the first process to tell."""
    try:
        return source.read(composed.config.data, composed.tree["data"], composed.config.seed)
    except TuneforgeError as error:
        problems += error.problems
        return None


def _report(composed: Composed, rows: "Source | None", place: "Place", problems: Sequence[Problem]) -> dict[str, Any]:
    """What must be the same in every process, or be there."""
    return {
        "host": socket.gethostname(),
        "problems": [as_record(p) for p in problems],
        "sees the folder": (place.folder.root / LOCK).is_file(),
        "folder": str(place.folder.root),
        "same": {
            "config": fingerprint(composed),
            **{f"rows of {name}": digest for name, digest in (rows.digests if rows else {}).items()},
            **versions(),
        },
    }


def _compare(reports: Sequence[dict[str, Any]]) -> None:
    """Nothing, where every process has what the first one has.

    Raises:
        TuneforgeError: the first that has not, and what.
    """
    for rank, report in enumerate(reports):
        who = _name(rank, len(reports), report["host"])
        if "failed" in report:
            message = f"{who} failed before training: {report['failed']}"
            raise LostError("process-lost", message, fix="its own output has the traceback")
        if report["problems"]:
            found = [{k: v for k, v in p.items() if k != "severity"} for p in report["problems"]]
            raise TuneforgeError.of(Problem(**{**p, "message": f"{p['message']} ({who})"}) for p in found)
        ours, theirs = reports[0]["same"], report["same"]
        for name in ours:
            if theirs.get(name) != ours[name]:
                raise TuneforgeError(
                    "processes-differ",
                    f"{who} has {name} {theirs.get(name)}, and the first process has {ours[name]}",
                    fix="give every machine the same files and packages",
                )
        if not report["sees the folder"]:
            raise TuneforgeError(
                "folder-not-shared",
                f"{who} does not see {report['folder']}, where the first process is going to write checkpoints",
                path="output_root",
                fix="set output_root to a folder that every machine sees under the same name",
            )


def _check_world(composed: Composed, world: "World") -> None:
    """What the launcher started must be what the config asks for, where it asks."""
    devices = composed.config.trainer.devices
    if devices not in ("auto", world.local_size):
        raise TuneforgeError(
            "launcher-disagrees",
            f"is {devices}, and the launcher started {world.local_size} processes on each machine",
            path="trainer.devices",
            fix="drop the key: how many there are is said to torchrun or srun",
        )
    if one_process(composed.tree):
        raise TuneforgeError(
            "single-is-one-device",
            f"single is one process on one device, and the launcher started {world.size}",
            path="strategy",
            fix="use strategy=ddp, or start one process",
        )


def _name(rank: int, size: int, host: str = "") -> str:
    return f"process {rank} of {size} on {host or socket.gethostname()}"
