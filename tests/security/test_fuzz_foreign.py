"""Random configs of other tools and random sweeps: a meaningful exit code, and no hang. See test_fuzz.py."""

import copy
import json
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from fuzzing import NASTY, TYPES, damage, lines_of, mangled, retyped, run_all, seeds
from tuneforge import cli
from tuneforge.study import run as study_run

FOREIGN = Path(__file__).parents[1] / "unit" / "foreign_configs"

# ---- configs of other tools

OTHER_KEYS = ["deepspeed", "fsdp", "fsdp_config", "env", "peft", "lora_target", "datasets", "dataset", "eval_dataset"]
BESIDE = [
    "train.jsonl",
    "data/*.json",
    "ds_zero3.json",
    "zero2.json",
    "org/x",
    ["a", "b"],
    {"path": "train.jsonl", "type": 3},
]
CONFIGS = sorted(FOREIGN.glob("*.yaml"))


@seeds(12, first=500_000)
def test_any_foreign_config(sound, tmp_path, cases):
    def case(seed: int, rng: random.Random) -> None:
        folder = tmp_path / f"import {seed}"
        folder.mkdir()
        file = folder / rng.choice(["foreign.yaml", "foreign.yaml", "foreign.json", "f ö\n.yml"])
        tree = yaml.safe_load(rng.choice(CONFIGS).read_text())
        for _ in range(rng.choice([1, 1, 3])):
            if rng.random() < 0.3:
                tree[rng.choice([*OTHER_KEYS, *tree])] = copy.deepcopy(rng.choice([*BESIDE, *TYPES]))
            elif tree:
                retyped(tree, rng)
        text = (json.dumps if rng.random() < 0.3 else yaml.safe_dump)(tree)
        damaged = mangled(text, rng) if rng.random() < 0.3 else text.encode("utf-8", "surrogatepass")
        file.write_bytes(damaged)
        shutil.copy(FOREIGN / "dataset_info.json", folder)
        (folder / "ds_zero3.json").write_text('{"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}')
        (folder / "train.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
        for beside in rng.sample(["dataset_info.json", "ds_zero3.json", "train.jsonl"], rng.choice([0, 0, 1, 2])):
            damage(folder / beside, rng)
        sound("import", str(file), *rng.choice([[], ["--json"], ["--out", str(folder / "experiment" / "x.yaml")]]))
        shutil.rmtree(folder)

    run_all(cases, case)


# ---- sweeps

SPACES = lines_of("nasty_spaces.txt")
SWEEPERS = [
    *("n_trials", "n_jobs", "timeout", "max_failure_rate", "objective", "direction", "seeds", "trial", "trial.seed"),
    *("params", "params.seed", "study_name", "storage", "custom_search_space", "sampler", "sampler.seed", "pruner"),
    *("pruner._target_", "sampler._target_", "pruner.n_startup_trials"),
]
SETTINGS = ["1", "2", "grid", "random", "tpe", "[a,b]", "[minimize,maximize]", "eval/loss", "{seed:'1,2'}", "{a:b}"]
SAMPLERS = ["grid", "random", "tpe", "median", "none", "hyperband", "nothing", "null", "3"]
SHORT = ("model=tiny", "data.max_rows=32", "samples.num=0", "trainer.max_steps=1")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Path:
    """The folder of a sweep of eight trials without training."""

    def outcome(runs: list[Any], objectives: list[str]) -> Any:
        return study_run.Outcome("complete", (runs[0].config.optim.lr,), steps=2)

    root = tmp_path_factory.mktemp("swept") / "sweep"
    space = ("optim.lr=interval(1e-5,1e-3)", "method.r=4,8", "seed=range(1,9)", "hydra.sweeper.n_trials=8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_run, "run_all", outcome)
        assert cli.run(["-m", *SHORT, *space, f"hydra.sweep.dir={root}"]) == 0
    return root


STORED = [None, "x", "", -1, 10**9, 1e308, float("inf"), "[]", "{}", "null", '"x"', '{"name": 3}', b"\xff"]


def damage_study(file: Path, rng: random.Random) -> None:
    """Damage the database of a sweep: its bytes, or values of its tables."""
    raw = bytearray(file.read_bytes())
    kind = rng.random()
    if kind < 0.15:
        file.write_bytes(rng.choice([b"", b"[]", rng.randbytes(100), raw[: rng.randrange(len(raw))]]))
    elif kind < 0.3:
        for _ in range(rng.choice([1, 20])):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        file.write_bytes(raw)
    else:
        with closing(sqlite3.connect(file)) as database:
            for _ in range(rng.choice([1, 2])):
                _change_table(database, rng)
            database.commit()


def _change_table(database: sqlite3.Connection, rng: random.Random) -> None:
    table = rng.choice([row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")])
    column = rng.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
    some = rng.choice(["", f" WHERE rowid = {rng.randrange(1, 4)}"])
    kind = rng.randrange(8)
    try:
        if kind == 0:
            database.execute(f"DROP TABLE {table}")
        elif kind == 1:
            database.execute(f"DELETE FROM {table}{some}")
        else:
            database.execute(f"UPDATE {table} SET {column} = ?{some}", (rng.choice(STORED),))
    except sqlite3.IntegrityError:  # a constraint of the table
        pass


@pytest.fixture
def started(sound, monkeypatch, tmp_path) -> Callable[..., None]:
    """Sweep with trials that do nothing, in a folder."""

    def outcome(runs: list[Any], objectives: list[str]) -> Any:
        return study_run.Outcome("complete", tuple(1.0 for _ in objectives), steps=1)

    monkeypatch.setattr(study_run, "run_all", outcome)
    fixed = ("-m", *SHORT, "hydra.sweeper.n_trials=2", f"output_root='{tmp_path / 'outputs'}'")
    return lambda root, *typed: sound(*fixed, f"hydra.sweep.dir='{root}'", *typed)


@seeds(8, first=600_000)
def test_any_sweep_folder(sound, started, swept, tmp_path, cases):
    def case(seed: int, rng: random.Random) -> None:
        root = shutil.copytree(swept, tmp_path / f"sweep {seed}")
        for name in rng.choice([["sweep.json"], ["study.db"], ["study.db"], ["sweep.json", "study.db"]]):
            (damage if name == "sweep.json" else damage_study)(root / name, rng)
        try:
            if rng.random() < 0.8:
                sound("report", str(root))
            else:
                started(root, "seed=1,2")
        finally:
            shutil.rmtree(root)

    run_all(cases, case)


@seeds(5, first=700_000)
def test_any_sweep(started, tmp_path, cases):
    own = tmp_path / "own" / "sweep"
    own.mkdir(parents=True)
    shipped = sorted((Path(__file__).parents[2] / "sweeps").glob("*.yaml"))

    def case(seed: int, rng: random.Random) -> None:
        root = tmp_path / f"sweep {seed}"
        (own / "fuzz.yaml").write_bytes(mangled(rng.choice(shipped).read_text(), rng))
        typed = rng.sample(SPACES, rng.choice([1, 1, 2]))
        for key in rng.sample(SWEEPERS, rng.choice([0, 1, 1, 2])):
            typed.append(f"hydra.sweeper.{key}={rng.choice([*SETTINGS, rng.choice(NASTY)])}")
        if rng.random() < 0.2:
            typed.append(f"hydra/sweeper/{rng.choice(['sampler', 'pruner'])}={rng.choice(SAMPLERS)}")
        try:
            started(root, *typed, "--config-dir", str(own.parent))
        finally:
            shutil.rmtree(root, ignore_errors=True)

    run_all(cases, case)
