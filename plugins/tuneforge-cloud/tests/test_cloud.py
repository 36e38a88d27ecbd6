"""Every profile has the schema's keys, one device, and a price with its source and date."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from tuneforge.schema.hardware import Hardware
from tuneforge.testing import check_plugin

PLUGIN = Path(__file__).parents[1]
FILES = sorted((PLUGIN / "src" / "tuneforge_cloud" / "conf" / "hardware").glob("*.yaml"))
KEYS = {field.name for field in dataclasses.fields(Hardware)}
SOURCE = re.compile(r"\b[a-z0-9.-]+\.(com|ai|net|app|google\.com)/\S+")
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
DATE = re.compile(rf"\b20\d\d-\d\d-\d\d\b|\b({MONTHS}) 20\d\d\b|quarter of 20\d\d\b")


def price_note(text: str) -> str:
    """The comment above `usd_per_hour`."""
    before = text[: text.index("\nusd_per_hour:")]
    lines = before.splitlines()
    first = max(i for i, line in enumerate(lines) if line.startswith("# Price: "))
    assert all(line.startswith("# ") for line in lines[first:])
    return " ".join(line.removeprefix("# ") for line in lines[first:])


def test_it_conforms():
    passed = check_plugin(PLUGIN)
    assert sum("composes with the defaults" in line for line in passed) == len(FILES) == 9


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_a_profile_is_whole_and_its_price_has_a_source_and_a_date(file):
    text = file.read_text()
    profile = yaml.safe_load(text)
    assert set(profile) == KEYS
    assert all(profile[key] not in (None, []) for key in KEYS)
    assert profile["name"] == file.stem
    assert profile["match"] == [m.lower() for m in profile["match"]]
    assert text.splitlines()[0] == f"# python -m tuneforge hardware={file.stem}"
    assert "data sheet" in text or "white paper" in text or "GPU Architecture" in text
    note = price_note(text)
    assert SOURCE.search(note), note
    assert DATE.search(note), note


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_the_price_is_that_of_one_device(file):
    """Where a machine has several, its comment shows the division, and the file holds its result."""
    text = file.read_text()
    note = price_note(text)
    shared = re.search(r"([\d.]+) / (\d+) GPUs", note)
    assert shared or "one GPU" in note
    if shared:
        machine, gpus = float(shared[1]), int(shared[2])
        assert yaml.safe_load(text)["usd_per_hour"] == pytest.approx(machine / gpus, abs=0.001)


def test_equal_devices_have_equal_facts():
    """The A100 of one provider is that of another: what differs is the price."""
    facts: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for file in FILES:
        profile = yaml.safe_load(file.read_text())
        own = {k: v for k, v in profile.items() if k not in ("name", "usd_per_hour")}
        facts.setdefault(tuple(profile["match"]), []).append(own)
    assert sorted(map(len, facts.values())) == [1, 1, 1, 2, 2, 2]
    assert all(one == same[0] for same in facts.values() for one in same)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("aws_p4d", "a100_40gb"), ("aws_p5", "h100"), ("lambda_h100", "h100"), ("runpod_rtx4090", "rtx4090")],
)
def test_facts_are_those_of_tuneforges_own_profile_of_the_device(ours, theirs):
    from importlib import resources

    mine = yaml.safe_load((FILES[0].parent / f"{ours}.yaml").read_text())
    core = yaml.safe_load(resources.files("tuneforge.conf").joinpath("hardware", f"{theirs}.yaml").read_text())
    keys = KEYS - {"name", "match", "usd_per_hour"}
    assert {k: mine[k] for k in keys} == {k: core[k] for k in keys}
