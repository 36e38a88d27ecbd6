"""What processes tell each other outside of torch's process group: before there is one, and when it breaks.

A TCP store of torch at MASTER_ADDR:MASTER_PORT, the one that the process group then uses. torchrun's agent serves it;
elsewhere the first process does, so that it leaves last.
"""

import json
import os
import socket
import time
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from torch.distributed import DistError, PrefixStore, TCPStore  # type: ignore[attr-defined]

from tuneforge.errors import LostError, TuneforgeError
from tuneforge.world import AGENT_STORE, World, restarts

LISTENING = "TUNEFORGE_LISTENING"
"""Our own launcher's listening socket, a file descriptor that the first process inherits."""
MEETING = timedelta(minutes=10)
"""How long the others' machines may take to start their processes."""
WORKING = timedelta(hours=1)
"""How long a process may read rows, or write its result."""
LEAVING = 10.0
"""Seconds that the serving process waits for the others to go."""


class Exchange:
    """Values that processes hand each other, as JSON, by name."""

    def __init__(self, world: World) -> None:
        """Connect.

        Raises:
            TuneforgeError: the first process cannot be reached.
        """
        self.world = world
        of_agent = os.environ.get(AGENT_STORE) == "True"
        self._serves = world.rank == 0 and not of_agent
        self._store = PrefixStore("tuneforge", _tcp_store(world, world.port, serves=self._serves))
        if of_agent and restarts():
            self._move()
        self._store.set_timeout(WORKING)
        self._second: PrefixStore | None = None
        self._store.set(f"here/{world.rank}", "")

    def _move(self) -> None:
        """To a store of the first process, for the process group too: the agent's keeps what processes that are gone
        said in it, their addresses among it.
        """
        self._serves = self.world.rank == 0
        name = f"port/{restarts()}"
        if self._serves:
            store = _tcp_store(self.world, 0, serves=True)
            self._store.set(name, str(store.port))
        else:
            store = _tcp_store(self.world, int(self._store.get(name)), serves=False)
        os.environ[AGENT_STORE] = "False"
        os.environ["MASTER_PORT"] = str(store.port)
        self._store = PrefixStore("tuneforge", store)

    def from_first(self, name: str, value: Any = None) -> Any:
        """What the first process gives, in all of them.

        Raises:
            LostError: it is gone.
        """
        if self.world.rank == 0:
            self._store.set(name, json.dumps(value))
            return value
        return json.loads(self._get(name))

    def to_first(self, name: str, value: Any) -> list[Any]:
        """What each process gives, in order of rank, in the first; nothing in the others.

        Raises:
            LostError: one is gone, or has not come.
        """
        self._store.set(f"{name}/{self.world.rank}", json.dumps(value))
        if self.world.rank:
            return []
        # One that failed on its way here has told no one, and would be waited for as if it worked.
        self._store.set_timeout(MEETING)
        for rank in range(self.world.size):
            self._get(f"here/{rank}")
        self._store.set_timeout(WORKING)
        return [json.loads(self._get(f"{name}/{rank}")) for rank in range(self.world.size)]

    def failure(self) -> dict[str, Any] | None:
        """What a process that failed has claimed, asked at a connection of its own; None while none has failed.

        Raises:
            torch.distributed.DistError: the serving process is gone.
        """
        if self._second is None:
            port = int(os.environ["MASTER_PORT"])  # of the store that the first process serves, once it has moved
            self._second = PrefixStore("tuneforge", _tcp_store(self.world, port, serves=False))
        return json.loads(self._second.get("failed")) if self._second.check(["failed"]) else None

    def claim(self, name: str, value: Any) -> Any:
        """The value of the process that came first to claim the name.

        Raises:
            torch.distributed.DistError: the serving process is gone.
        """
        return json.loads(self._store.compare_set(name, "", json.dumps(value)))

    def _get(self, name: str) -> bytes:
        try:
            return bytes(self._store.get(name))
        except DistError as error:
            raise LostError(
                "process-lost",
                f"process {self.world.rank} of {self.world.size} on {socket.gethostname()} waited for {name!r} in "
                f"vain: {str(error).splitlines()[0]}",
                fix="another process ended early, or its machine is not reached; its own message tells",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave; the serving process goes last, so that the others have read everything."""
        try:
            left = self._store.add("left", 1)
            until = time.monotonic() + LEAVING
            while self._serves and left < self.world.size and time.monotonic() < until:
                time.sleep(0.01)
                left = self._store.add("left", 0)
        except DistError:  # it has gone already
            return


def _tcp_store(world: World, port: int, *, serves: bool) -> TCPStore:
    descriptor = os.environ.pop(LISTENING, None)
    try:
        return TCPStore(
            world.address,
            port,
            is_master=serves,
            timeout=MEETING,
            wait_for_workers=False,
            multi_tenant=serves,
            master_listen_fd=int(descriptor) if descriptor else None,
        )
    except DistError as error:
        raise TuneforgeError(
            "process-lost",
            f"process {world.rank} of {world.size} on {socket.gethostname()} does not reach the first one at "
            f"{world.address}:{port}: {str(error).splitlines()[0]}",
            fix="see that every machine resolves that name and may connect, or set MASTER_ADDR and MASTER_PORT",
        ) from error
