"""One of several processes of a run: builds its part of the model, writes the memory that took, and ends.

VmHWM is the kernel's own peak of resident memory: no sample between two looks is missed. It counts pages of mapped
files too, which the kernel could drop: what is asserted of it holds all the more of memory that is really taken.
"""

import json
import os
import re
import sys
from pathlib import Path

from several import run

from tuneforge.objectives.base import Objective


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def measured(handover: Path, streams: bool) -> None:
    """Start the run of a handover; it never trains."""
    build = Objective.configure_model

    def configure_model(self: Objective) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now (man 5 proc)
        before = {key: status(key) for key in ("VmRSS", "RssAnon")}
        build(self)
        grown = {"peak": status("VmHWM") - before["VmRSS"], "kept": status("RssAnon") - before["RssAnon"]}
        handover.with_suffix(f".{os.environ['RANK']}.peak").write_text(json.dumps(grown))
        self.trainer.strategy.barrier()
        os._exit(0)

    Objective.configure_model = configure_model  # type: ignore[method-assign]
    from tuneforge.objectives.causal_lm import CausalLM

    CausalLM.streams = streams
    run(handover)


if __name__ == "__main__":
    measured(Path(sys.argv[1]), sys.argv[2] == "streamed")
