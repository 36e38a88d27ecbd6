"""One of several processes of a run; started by the launcher, never typed."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from tuneforge.artifacts.folder import write_text
from tuneforge.console import is_main_process, quiet_libraries
from tuneforge.data import source
from tuneforge.errors import EXIT_BUG, EXIT_OK, TuneforgeError, print_problems
from tuneforge.launcher import end_with_parent, unpack
from tuneforge.train import train


def main(handover: Path, outcome: Path) -> int:
    """Train this process's share; returns what torchrun is told: 0 where all processes come to the same end."""
    end_with_parent()
    write_text(outcome.with_name(f"pid-{os.environ['RANK']}"), str(os.getpid()))
    quiet_libraries()
    composed, place = unpack(handover)
    try:
        rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
        code = train(composed, rows, place)
    except TuneforgeError as error:
        if _is_outcome(error.exit_code, outcome):
            print_problems(error.problems)
        return error.exit_code
    except BaseException:
        _is_outcome(EXIT_BUG, outcome)
        raise
    if is_main_process():
        _is_outcome(code, outcome)
    # An interrupted process is no failed one: for that torchrun would kill the others, which are still writing.
    return EXIT_OK


def _is_outcome(code: int, outcome: Path) -> bool:
    """Leave the run's exit code for the launcher; False where another process has failed before."""
    with suppress(FileExistsError), outcome.open("x") as file:
        file.write(str(code))
        return True
    return False


if __name__ == "__main__":
    # os._exit would be quicker, but would lose what is still in the streams' buffers.
    sys.stdout.flush()
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])) if os.environ.get("RANK") else EXIT_BUG)
