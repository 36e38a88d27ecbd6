"""One of several processes that train many small runs one after another: what imports cost is paid once."""

import sys
import traceback
from collections.abc import Iterable
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


def run_all(handovers: Iterable[Path]) -> None:
    """One that fails is then without its steps, which its test shows."""
    quiet_libraries()
    for path in handovers:
        try:
            run(path)
        except Exception:
            traceback.print_exc()


if __name__ == "__main__":
    run_all(map(Path, sys.argv[1:]))
