"""How long the command line takes to answer, against an empty Hydra application: `python benchmarks/startup.py`."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = """
import hydra
from omegaconf import DictConfig

@hydra.main(config_path=None, execution_whitelist=[])
def main(config: DictConfig) -> None:
    pass

main()
"""
ROUNDS = 9


def seconds(command: list[str], folder: Path) -> float:
    """Wall time of one command, its output thrown away."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Interleave the commands, so that a busy moment hits all of them, and print medians and ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.py").write_text(EMPTY)
        tune = [sys.executable, "-m", "tuneforge"]
        commands = {
            "empty Hydra app, --help": [sys.executable, "empty.py", "--help"],
            "empty Hydra app, --cfg job": [sys.executable, "empty.py", "--cfg", "job"],
            "tuneforge --help": [*tune, "--help"],
            "tuneforge --cfg job": [*tune, "--cfg", "job"],
            "tuneforge optim.lrr=1": [*tune, "optim.lrr=1"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for label, command in commands.items():
                times[label].append(seconds(command, folder))
    base = statistics.median(times["empty Hydra app, --cfg job"])
    for label, measured in times.items():
        middle = statistics.median(measured)
        print(f"{label:<28} {middle:6.3f} s   {middle / base:4.2f} x")


if __name__ == "__main__":
    main()
