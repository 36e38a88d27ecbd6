"""What 50 dropped plugins cost `--cfg job`, which names none of them: `python benchmarks/plugins.py`."""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
COUNT = 50


def write(folder: Path, number: int) -> None:
    """One plugin with a method, a hardware profile and a module that must not be imported."""
    package = folder / "plugins" / f"p{number}" / f"bench_p{number}"
    for group in ("method", "hardware"):
        (package / "conf" / group).mkdir(parents=True)
        (package / "conf" / group / f"b{number}.yaml").write_text(f"name: b{number}\n")
    (package / "__init__.py").write_text("raise RuntimeError\n")
    (package.parent / "pyproject.toml").write_text(
        f'[project]\nname = "p{number}"\nversion = "1"\n'
        f'[project.entry-points."tuneforge.plugins"]\np{number} = "{package.name}"\n'
    )


def seconds(folder: Path) -> float:
    """Wall time of one `--cfg job`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tuneforge", "--cfg", "job"], cwd=folder, capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    """Interleaved, medians, and the ratio."""
    with tempfile.TemporaryDirectory() as none, tempfile.TemporaryDirectory() as many:
        for number in range(COUNT):
            write(Path(many), number)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(ROUNDS):
            for kept, folder in zip(times, (none, many), strict=True):
                kept.append(seconds(Path(folder)))
    without, with_all = map(statistics.median, times)
    print(f"no plugin {without:.3f} s, {COUNT} plugins {with_all:.3f} s: {with_all / without:.2f} x")


if __name__ == "__main__":
    main()
