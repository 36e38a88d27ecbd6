"""A trial in a process of its own; started by hydra/launcher=processes, never typed."""

import signal
import sys
from pathlib import Path

from tuneforge.artifacts.folder import read_json, write_json
from tuneforge.console import quiet_libraries, unbroken_output
from tuneforge.errors import EXIT_OK, TuneforgeError
from tuneforge.handover import unpack
from tuneforge.masking import masked_output
from tuneforge.study.processes import as_told, outcome_file
from tuneforge.study.run import run_all
from tuneforge.study.slots import Ended


def main(handover: Path) -> int:
    """Run it, and write down what came of it."""
    # Until training hears it, SIGINT must end this process as SIGTERM does, and not in a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    quiet_libraries()
    told = read_json(handover)
    with unbroken_output(), masked_output():
        try:
            ended: Ended = run_all([unpack(run) for run in told["runs"]], told["objectives"])
        except TuneforgeError as error:
            ended = error
    write_json(outcome_file(handover), as_told(ended))
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
