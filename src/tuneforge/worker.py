"""One of several processes of a run on one machine; started by the launcher, never typed."""

import signal
import sys
from pathlib import Path

from tuneforge.artifacts.folder import read_json
from tuneforge.console import quiet_libraries, unbroken_output
from tuneforge.exchange import Exchange
from tuneforge.handover import unpack, unpack_place
from tuneforge.masking import masked_output
from tuneforge.member import take_part
from tuneforge.world import find_world


def main(handover: Path) -> int:
    """Train this process's share; returns the exit code of the run."""
    # Until training hears it, SIGINT must end this process as SIGTERM does, and not in a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    quiet_libraries()
    packed = read_json(handover)
    with unbroken_output(), masked_output(), Exchange(find_world()) as exchange:
        return take_part(exchange, unpack(packed["config"]), unpack_place(packed["place"]))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
