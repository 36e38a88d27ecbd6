"""Time and memory bounds on what a config, a model or an adapter brings to be evaluated: templates and patterns.

A timer of the processor interrupts the main thread. Python looks for signals within `re`'s matching and within long
multiplications too, so that one line of C cannot outlast it; a limit on memory ends what would grow instead. A child
process for each of a data set's rows would cost a hundred times the rendering. The `regex` package has a timeout, but
reads some patterns in another way than `re`, which PEFT matches with.
"""

import os
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil

from tuneforge.errors import TuneforgeError

SECONDS = 2.0
"""Processor time that one template or pattern may take; what a person writes takes thousandths of it."""
MEMORY = 2 << 30
"""Bytes by which the process may grow meanwhile."""


class OverBoundsError(BaseException):
    """What was bounded took too long, or too much memory. Jinja's `except Exception` must not catch it."""


@contextmanager
def bounded(seconds: float | None = None, memory: int | None = None) -> Iterator[None]:
    """Interrupt what is inside when it takes more time or memory; in other threads than the main one, nothing is.

    Raises:
        OverBoundsError: it did.
    """
    seconds, memory = seconds or SECONDS, memory or MEMORY
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise OverBoundsError(f"took more than {seconds:g} seconds of the processor")

    handler = signal.signal(signal.SIGVTALRM, over)
    before = signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 0.1)
    try:
        with limited(memory):
            yield
    except MemoryError as error:
        raise OverBoundsError(f"took more than {memory >> 20} MiB of memory") from error
    except RecursionError as error:
        raise OverBoundsError("is nested too deeply") from error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *before)
        signal.signal(signal.SIGVTALRM, handler)


@contextmanager
def limited(memory: int) -> Iterator[None]:
    """Within, the process may grow by no more than `memory` bytes, on Linux; more of it raises MemoryError."""
    if sys.platform != "linux":
        yield
        return
    # Read without a file object: this comes with each row that a template is rendered for.
    descriptor = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        pages = int(os.read(descriptor, 64).split()[0])
    finally:
        os.close(descriptor)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + memory
    lower = wanted if soft == resource.RLIM_INFINITY else min(soft, wanted)
    resource.setrlimit(resource.RLIMIT_AS, (lower, hard))
    try:
        yield
    finally:
        with suppress(ValueError):  # a hard limit that was lowered meanwhile
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def spare_memory() -> int:
    """Bytes that one file may take when it is read: three quarters of what the machine has left."""
    return psutil.virtual_memory().available * 3 // 4


def matching(pattern: str, names: Iterable[str], path: str, *, anywhere: bool = False) -> list[str]:
    """The names that a pattern matches as a whole, or with `anywhere` in a part of them; `path` is its config key.

    Raises:
        TuneforgeError: it is no pattern, or takes too long on one of the names.
    """
    shown = pattern if len(pattern) <= 80 else pattern[:77] + "..."
    try:
        with bounded():
            compiled = re.compile(pattern)
            match = compiled.search if anywhere else compiled.fullmatch
            return [name for name in names if match(name)]
    except re.error as error:
        raise TuneforgeError(
            "bad-pattern",
            f"{shown!r} is no regular expression: {error}",
            path=path,
            fix="write it in the syntax of Python's re: a dot in a name is \\., any characters are .*",
        ) from error
    except (OverBoundsError, OverflowError) as error:
        raise TuneforgeError(
            "slow-pattern",
            f"the pattern {shown!r} {error} on the {len(list(names))} names of this model",
            path=path,
            fix="write it without a repetition in a repetition: (a+)+ tries every way to split a name",
        ) from error
