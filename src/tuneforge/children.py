"""Processes that this one starts: they hear its signals, and end with it however it ends."""

import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from tuneforge.errors import EXIT_OF

Child = subprocess.Popen[bytes]

PR_SET_PDEATHSIG = 1
"""prctl(2)."""
GRACE = 30.0
"""Seconds that processes have to end by themselves."""


def to_hear() -> list[signal.Signals]:
    """The signals that end a run with a checkpoint. SIGHUP (a closed terminal) is not, where `nohup` has it ignored."""
    return [n for n in EXIT_OF if n is not signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


@contextmanager
def passing_on(children: Callable[[], Iterable[Child]]) -> Iterator[list[int]]:
    """Within, a signal goes to every child there is by then; gives the list of those that came."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for child in children():
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in to_hear()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """Have the system send this process SIGTERM when its parent dies, however it dies: no orphan trains on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
