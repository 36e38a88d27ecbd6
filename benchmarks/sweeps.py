"""What a sweep finds and what pruning saves: `python benchmarks/sweeps.py [TRIALS]`, a quarter of an hour on two cores.

The space of +sweep=lora_quick on the bundled model and data, searched twice with the same seed: once with every trial
run to its end, once with the file's pruner. Then the best of each and the default are trained on three other seeds.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import optuna

from tuneforge.artifacts.folder import read_json
from tuneforge.cli import run
from tuneforge.study.store import Kept

SEEDS = (1, 2, 3)
LENGTH = ("trainer.max_steps=60", "batch.effective=8", "data.split.max_eval_rows=100", "samples.num=0")
"""Of the sweep's trials and of the default alike: short enough for a machine of two cores."""
STEPS = 0.6
"""Most steps of the pruned sweep, as a share of the other's."""


def searched(root: Path, trials: int, pruner: str) -> optuna.Study:
    """The study of a finished sweep."""
    options = (f"hydra.sweep.dir={root}", f"hydra.sweeper.n_trials={trials}", f"hydra/sweeper/pruner={pruner}")
    assert run(["-m", "+sweep=lora_quick", *LENGTH, *options]) == 0
    kept = Kept.read(root)
    return optuna.load_study(study_name=kept.study, storage=kept.url(root))


def losses(folder: Path, options: Sequence[str]) -> list[float]:
    """Eval loss after training with these options on each seed."""
    found = []
    for seed in SEEDS:
        root = folder / str(seed)
        assert run([*options, *LENGTH, f"seed={seed}", f"hydra.run.dir={root}"]) == 0
        found.append(float(read_json(root / "run.json")["metrics"]["after"]["eval/loss"]))
    return found


def main() -> int:
    """The table; 1 where pruning costs more than it should, or an answer is no better than the default."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 24
    lines = [
        "| sweep | trials (pruned) | optimizer steps | best eval loss | retrained on seeds 1, 2, 3 |",
        "|---|---|---|---|---|",
    ]
    spent, means = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for pruner in ("none", "halving"):
            root = Path(name) / pruner
            study = searched(root, trials, pruner)
            spent[pruner] = sum(t.user_attrs["steps"] for t in study.trials)
            pruned = sum(t.state is optuna.trial.TrialState.PRUNED for t in study.trials)
            again = losses(Path(name) / f"{pruner}-best", ["--config-dir", str(root), "+experiment=best"])
            means[pruner] = statistics.fmean(again)
            told = f"{means[pruner]:.4f} ({', '.join(f'{v:.4f}' for v in again)})"
            lines.append(
                f"| {pruner} | {len(study.trials)} ({pruned}) | {spent[pruner]:,} | {study.best_value:.4f} | {told} |"
            )
        default = losses(Path(name) / "default", [])
    lines.append(f"| the default | | | | {statistics.fmean(default):.4f} ({', '.join(f'{v:.4f}' for v in default)}) |")
    print("\n".join(lines))
    share = spent["halving"] / spent["none"]
    print(f"\npruning: {share:.0%} of the steps")
    return int(share > STEPS or max(means.values()) >= statistics.fmean(default))


if __name__ == "__main__":
    sys.exit(main())
