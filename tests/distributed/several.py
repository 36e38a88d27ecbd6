"""One of several processes that train many small runs one after another: what imports cost is paid once."""

import sys
import traceback
from pathlib import Path

from tuneforge import worker

if __name__ == "__main__":
    for handover in map(Path, sys.argv[1:]):
        try:
            worker.main(handover, handover.with_suffix(".exit"))
        except Exception:  # the case is then without its steps, which the grid shows
            traceback.print_exc()
