"""Random overrides, option files, run folders and templates: an exit code that means something, and no hang.

Each case is made from a seed, which a failure names: `FUZZ_SEED=n pytest tests/security/test_fuzz.py -k kind` runs it
alone, and `FUZZ_SEED=n-m` those of a range.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from fuzzing import NASTY, damage, lines_of, mangled, misspelt, run_all, seeds
from tuneforge.compose import compose
from tuneforge.front import front, groups
from tuneforge.interpolation import leaves

ROOT = Path(__file__).parents[2]
KEYS = ["hydra.run.dir", "hydra.sweep.dir", "hydra.job.chdir", "hydra", "_target_", "defaults", "a.b", "", ".", "a..b"]


@pytest.fixture(scope="module")
def known() -> tuple[list[str], dict[str, list[str]]]:
    """Every key of the default config, and every group with its options."""
    with front() as loader:
        return sorted(leaves(compose().tree)), groups(loader)


# ---- overrides


def override(keys: Sequence[str], found: dict[str, list[str]], rng: random.Random) -> str:
    """One argument: mostly a key or group that exists, with a value or a name that may not."""
    if rng.random() < 0.4:
        key = rng.choice(sorted(found))
        value = rng.choice([*found[key], rng.choice(NASTY)])
    else:
        key, value = rng.choice([*keys, rng.choice(KEYS)]), rng.choice(NASTY)
    if rng.random() < 0.15:
        key = misspelt(key, rng)
    prefix = rng.choice(["", "", "", "", "+", "++", "~"])
    return f"{prefix}{key}" if prefix == "~" and rng.random() < 0.5 else f"{prefix}{key}={value}"


@seeds(40, first=0)
def test_any_overrides(sound, known, cases):
    def case(seed: int, rng: random.Random) -> None:
        typed = [override(*known, rng) for _ in range(rng.choice([1, 1, 2, 3]))]
        why = ["plan", "--why", rng.choice([*known[0], "x", ""])]
        sound(*rng.choice([["plan"], ["--cfg", "job"], ["plan", "--json"], why]), *typed)

    run_all(cases, case)


# ---- option files


@seeds(25, first=100_000)
def test_any_option_file(sound, known, tmp_path, cases):
    shipped = {g: sorted((ROOT / "conf" / g).glob("*.yaml")) for g in known[1] if (ROOT / "conf" / g).is_dir()}

    def case(seed: int, rng: random.Random) -> None:
        group = rng.choice(sorted(g for g, files in shipped.items() if files))
        file = tmp_path / "own" / group / "fuzz.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(mangled(rng.choice(shipped[group]).read_text(), rng))
        verb = rng.choice([["plan"], ["train", "--cfg", "job"]])
        try:
            sound(*verb, "--config-dir", str(tmp_path / "own"), f"{group}=fuzz")
        finally:
            file.unlink()

    run_all(cases, case)


# ---- run folders

KEPT = ["run.json", "run.json", "config.yaml", "provenance.json", "metrics.jsonl", "adapter/adapter_config.json"]


@pytest.fixture(scope="module")
def whole(finished):
    """A finished run."""
    return finished("trainer.max_steps=2", "data.max_rows=32", "data.split.max_eval_rows=8", "samples.num=0").folder


@seeds(25, first=200_000)
def test_any_run_folder(sound, whole, tmp_path, cases):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n' * 12)

    def case(seed: int, rng: random.Random) -> None:
        folder = shutil.copytree(whole, tmp_path / f"run {seed}")
        for name in rng.sample(KEPT, rng.choice([1, 1, 2])):
            if (folder / name).is_file():
                damage(folder / name, rng)
        there = str(folder)
        verbs = [
            ["plan", "--from", there],
            ["plan", there, "optim.lr=1e-3"],
            ["plan", "--diff", there, str(whole)],
            ["plan", "--diff", there],
            ["report", there],
            ["plan", f"model.adapter={there}/adapter"],
            ["train", "--from", there, "--cfg", "job"],
            ["train", f"resume={there}", "data=file", f"data.path={rows}"],
        ]
        try:
            sound(*rng.choice(verbs))
        finally:
            shutil.rmtree(folder)

    run_all(cases, case)


# ---- templates

PARTS = lines_of("nasty_templates.txt")


@seeds(8, first=300_000)
def test_any_template(sound, tmp_path, cases):
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b."}]
    rows.write_text(f"{json.dumps({'messages': turns})}\n" * 12)

    def case(seed: int, rng: random.Random) -> None:
        template = tmp_path / "fuzz.jinja"
        template.write_text("".join(rng.choice(PARTS) for _ in range(rng.choice([1, 2, 3]))))
        sound(
            *("data=file", f"data.path={rows}", f"model.chat_template={template}", "trainer.max_steps=1"),
            *(f"hydra.run.dir={tmp_path / 'runs' / str(seed)}", f"output_root={tmp_path / 'outputs'}"),
        )

    run_all(cases, case)
