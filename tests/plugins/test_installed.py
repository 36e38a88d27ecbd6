"""The repository's plugins, dropped and installed, as their users have them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tuneforge.cli import run
from tuneforge.compose import compose
from tuneforge.plugins.discovery import discover

ROOT = Path(__file__).parents[2]
SHIPPED = {"cloud": "tuneforge-cloud", "lorafa": "tuneforge-lorafa", "sql": "tuneforge-sql"}


@pytest.fixture
def shipped(here, monkeypatch):
    monkeypatch.setenv("TUNEFORGE_PLUGIN_PATH", str(ROOT / "plugins"))
    return {p.name: p for p in discover()}


def test_the_repositorys_plugins_are_found_whole(shipped):
    assert {name: p.origin.name for name, p in shipped.items()} == SHIPPED
    assert all(p.troubles == () for p in shipped.values())


def test_a_run_records_the_plugins_it_used(shipped, command):
    few = (
        "trainer.max_steps=1",
        "data.max_rows=16",
        "data.split.max_eval_rows=4",
        "batch.effective=4",
        "samples.num=0",
    )
    ran = command("method=lorafa", *few)
    assert ran.code == 0, ran.err
    (used,) = ran.record["plugins"]
    assert (used["name"], used["sha256"]) == ("lorafa", shipped["lorafa"].digest)
    assert used["origin"] == str(ROOT / "plugins" / "tuneforge-lorafa")
    assert run(["--from", str(ran.folder), "--cfg", "job"]) == 0
    record = json.loads((ran.folder / "run.json").read_text())
    record["plugins"][0]["sha256"] = "0" * 64
    (ran.folder / "run.json").write_text(json.dumps(record))
    from tuneforge.rerun import compose_from

    assert any("plugin lorafa" in n and "has changed" in n for n in compose_from(ran.folder, []).notes)


def test_an_installed_wheel_is_the_same_plugin(here, monkeypatch):
    """Built and installed by pip into a folder of its own, found by its entry point."""
    copy = here / "source"
    subprocess.run(["cp", "-r", str(ROOT / "plugins" / "tuneforge-cloud"), str(copy)], check=True)
    target = here / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(copy)]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    env = {k: v for k, v in os.environ.items() if not k.startswith("TUNEFORGE_")} | {"PYTHONPATH": str(target)}
    listing = subprocess.run(
        [sys.executable, "-m", "tuneforge", "plugins", "--json"],
        cwd=here, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    (shown,) = json.loads(listing.stdout)
    assert (shown["name"], shown["installed"], shown["troubles"]) == ("cloud", True, [])
    option = shown["adds"]["hardware"][0]
    composed = subprocess.run(
        [sys.executable, "-m", "tuneforge", "--cfg", "job", "--package", "hardware.name", f"hardware={option}"],
        cwd=here, env=env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert composed.stdout.strip() == option
    # The same package dropped beside it is refused, naming both places.
    monkeypatch.syspath_prepend(str(target))
    (here / "plugins").mkdir()
    copy.rename(here / "plugins" / "tuneforge-cloud")
    troubles = [t.cause for p in discover() for t in p.troubles]
    assert any("another plugin has its name" in t for t in troubles)
    assert compose().plugins == ()
