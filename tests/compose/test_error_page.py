"""docs/errors.md lists every error there is, and none that is not."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKERS = ("TuneforgeError", "RefusedError", "Problem", "_error")


def codes_in_source() -> set[str]:
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = ast.unparse(node.func)
            if name in MAKERS or name == "self.report":
                code = node.args[0]
                if isinstance(code, ast.Constant):
                    found.add(code.value)
                else:
                    # The few that pass a code on; every other place must name its own, or this page cannot be complete.
                    assert ast.unparse(code) == "code", f"{file}:{node.lineno}"
    return found


def rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "errors.md").read_text().splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line.startswith("| `")]


def test_the_page_lists_every_code_and_no_other():
    listed = [row[0].strip("`") for row in rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) == codes_in_source()
    assert len(listed) > 80


def test_every_entry_has_a_cause_and_a_mend():
    assert [row[0] for row in rows() if len(row) != 3 or not all(row)] == []


def test_codes_are_names_for_machines():
    assert [c for c in codes_in_source() if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", c)] == []
