"""The console: a few plain lines, from the first process only, above whatever progress bar is drawn."""

import logging
import os
import sys
import warnings

from rich.console import Console

from tuneforge.errors import JSON_ERRORS, Problem, print_problems
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


def say(line: str) -> None:
    """Print one line."""
    if is_main_process():
        console.print(line, markup=False)


def warn(what: str | Problem) -> None:
    """Print a line, or a problem that stops nothing, that starts with `warning:`."""
    if not is_main_process():
        return
    problem = what if isinstance(what, Problem) else Problem("warning", what)
    if os.environ.get(JSON_ERRORS) == "1":
        print_problems([problem], "warning")
    else:
        console.print("[yellow]warning:[/yellow] " + str(problem).replace("[", r"\["))


def quiet_libraries() -> None:
    """Silence the chatter of the libraries under us at its source; their errors still come through."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
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
