"""What is shipped is what is in the tree."""

import tomllib
from pathlib import Path

from tuneforge import __version__

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_of_the_tree_is_shipped():
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    there = {".".join(p.parent.relative_to(ROOT / "src").parts) for p in (ROOT / "src").rglob("__init__.py")} | {
        "tuneforge.conf",
        "tuneforge.sweeps",
    }
    assert listed == there


def test_the_constraints_are_within_what_the_package_allows():
    from packaging.requirements import Requirement

    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = [Requirement(r) for r in PROJECT["project"]["dependencies"]]
    checked = [r for r in wanted if r.name in pinned]
    assert len(checked) >= 6
    assert all(r.specifier.contains(pinned[r.name], prereleases=True) for r in checked)


def test_the_version_is_told(capsys):
    from tuneforge.cli import run

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
