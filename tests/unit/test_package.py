"""What is shipped is what is in the tree."""

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    wanted = [Requirement(r) for r in PROJECT["project"]["dependencies"]]
    checked = [r for r in wanted if r.name in pinned]
    assert len(checked) >= 6
    assert all(r.specifier.contains(pinned[r.name], prereleases=True) for r in checked)


def test_the_version_is_told(capsys):
    from tuneforge.cli import run

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_every_package_that_the_code_imports_is_a_requirement():
    """A package that another one happens to bring may go with that one's next release."""
    project = PROJECT["project"]
    required = project["dependencies"] + [r for extra in project["optional-dependencies"].values() for r in extra]
    declared = {canonicalize_name(Requirement(r).name) for r in required}
    of_module = importlib.metadata.packages_distributions()
    imported = {
        name.partition(".")[0]
        for file in (ROOT / "src").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom) and node.level == 0
            else []
        )
    } - {*sys.stdlib_module_names, "tuneforge"}
    assert len(imported) >= 20
    missing = {m for m in imported if not declared & {canonicalize_name(d) for d in of_module.get(m, [m])}}
    assert missing == set()
