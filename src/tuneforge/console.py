"""The console: a few plain lines, from the first process only, above whatever progress bar is drawn."""

import errno
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

from rich.console import Console

from tuneforge.errors import JSON_ERRORS, Problem, print_problems, shown
from tuneforge.masking import mask
from tuneforge.world import is_main_process

console = Console(stderr=False, highlight=False, soft_wrap=True)
"""Shared by the progress bar, so that lines printed while it is drawn appear above it."""

# Filters hold for the logger that a message is given to, not for its parents: so the very modules are named.
_CHATTY = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.distributed",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "bitsandbytes.backends.cpu.ops",
    "lightning.fabric.utilities.distributed",
)


class _Unbroken:
    """A stream whose reader may go away: what is written from then on is dropped, and the program continues."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop it where that is impossible; a character that the encoding lacks is written as its escape."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._lose(error)
            return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what was not written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _lose(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return  # a log on a full disk may have room again
        null = os.open(os.devnull, os.O_WRONLY)
        # The descriptor too: children write to it, and Python flushes it when it ends.
        with suppress(io.UnsupportedOperation, AttributeError):
            os.dup2(null, self._stream.fileno())
        os.close(null)


@contextmanager
def unbroken_output() -> Iterator[None]:
    """Within, a closed stdout or stderr (`| head`, a terminal that is gone) ends nothing."""
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nothing:
        ours = [cast(TextIO, _Unbroken(stream or nothing)) for stream in before]  # None: closed when Python started
        sys.stdout, sys.stderr = ours
        try:
            yield
        finally:
            for stream in ours:
                stream.flush()
            sys.stdout, sys.stderr = before


def say(line: str) -> None:
    """Print one line."""
    if is_main_process():
        console.print(mask(line), markup=False)


def warn(what: str | Problem) -> None:
    """Print a line, or a problem that stops nothing, that starts with `warning:`."""
    if not is_main_process():
        return
    problem = what if isinstance(what, Problem) else Problem("warning", what)
    if os.environ.get(JSON_ERRORS) == "1":
        print_problems([problem], "warning")
    else:
        console.print("[yellow]warning:[/yellow] " + str(shown(problem)).replace("[", r"\["))


def quiet_libraries() -> None:
    """Silence the chatter of the libraries under us at its source; their errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # transformers would run code from the hub that no config names, where the package `kernels` is installed.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    # TensorFlow's C++ log, which tensorboard's import touches where TensorFlow is installed.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for name in _CHATTY:
        # A filter, not a level: lightning sets its own level when it is imported, which is later.
        logger = logging.getLogger(name)
        if _only_errors not in logger.filters:
            logger.addFilter(_only_errors)
    if not sys.warnoptions:
        # Python's warnings are for developers: the suite turns them into errors, a user's console shows none.
        warnings.simplefilter("ignore")


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
