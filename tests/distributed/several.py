"""One of several processes that train many small runs one after another: what imports cost is paid once."""

import sys
import traceback
from pathlib import Path

from tuneforge.artifacts.folder import read_json
from tuneforge.console import quiet_libraries
from tuneforge.data import source
from tuneforge.handover import unpack, unpack_place
from tuneforge.train import train


def run(handover: Path) -> None:
    """This process's share of one run."""
    packed = read_json(handover)
    composed = unpack(packed["config"])
    rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
    train(composed, rows, unpack_place(packed["place"]))


if __name__ == "__main__":
    quiet_libraries()
    for path in map(Path, sys.argv[1:]):
        try:
            run(path)
        except Exception:  # the case is then without its steps, which the grid shows
            traceback.print_exc()
