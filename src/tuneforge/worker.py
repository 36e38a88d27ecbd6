"""One of several processes of a run; started by the launcher, never typed."""

import os
import sys
from pathlib import Path

from tuneforge.console import is_main_process, quiet_libraries
from tuneforge.data import source
from tuneforge.errors import EXIT_BUG, TuneforgeError, print_problems
from tuneforge.launcher import unpack
from tuneforge.train import train


def main(handover: Path, outcome: Path) -> int:
    """Train this process's share; the first process leaves the exit code in `outcome`."""
    quiet_libraries()
    composed, place = unpack(handover)
    code = EXIT_BUG
    try:
        rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
        code = train(composed, rows, place)
    except TuneforgeError as error:
        code = error.exit_code
        if is_main_process():
            print_problems(error.problems)
    finally:
        if is_main_process():
            outcome.write_text(str(code))
    return code


if __name__ == "__main__":
    # os._exit would be quicker, but would lose what is still in the streams' buffers.
    sys.stdout.flush()
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])) if os.environ.get("RANK") else EXIT_BUG)
