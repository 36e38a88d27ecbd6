"""What the documentation shows is true."""

import re
import shlex
from pathlib import Path

import pytest

from tuneforge.cli import VERBS, _check_flags, _parser, run
from tuneforge.compose import compose
from tuneforge.front import front, groups, groups_in_defaults
from tuneforge.overrides import normalise
from tuneforge.study.space import Space

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands() -> list[str]:
    """Every `python -m tuneforge ...` of the pages and of the option files, without its comment."""
    texts = [p.read_text() for p in PAGES] + [
        p.read_text().replace("# ", "", 1) for top in ("conf", "sweeps") for p in (ROOT / top).rglob("*.yaml")
    ]
    found = [line.strip() for text in texts for line in text.replace("\n# python", "\npython").splitlines()]
    return sorted({c.partition("  #")[0].strip() for c in found if c.startswith("python -m tuneforge")})


def test_there_are_commands_to_check():
    assert len(shown_commands()) > 40


@pytest.mark.parametrize("command", shown_commands())
def test_a_command_that_is_shown_composes(command, capsys):
    arguments = shlex.split(command)[3:]
    if "--help" in arguments:
        assert run(arguments) == 0
        return
    flags, rest = _parser().parse_known_args(arguments)
    assert not [a for a in rest if a.startswith("-")], "no such flag"
    words = [a for a in rest if "=" not in a]
    verb = words.pop(0) if words and words[0] in VERBS else "train"
    _check_flags(verb, flags)
    if verb == "plugins":
        assert not words or words[0] in ("new", "check")
        return
    # RUN and *.yaml stand for a folder or file of the reader's.
    assert all(w.isupper() or w.endswith(".yaml") for w in words)
    overrides = [a for a in rest if "=" in a]
    if not flags.multirun:
        compose(overrides)
        return
    with front() as loader:
        assert normalise(loader, overrides, groups_in_defaults(), sweeping=True)[2] == []
    space = Space.read({}, overrides)
    compose([*space.fixed, *space.first()])


def test_the_readme_lists_the_groups_and_options_there_are():
    readme = (ROOT / "README.md").read_text()
    with front() as loader:
        there = groups(loader)
    for group in ("model", "data", "method", "task_recipe", "hardware", "strategy"):
        (line,) = [x for x in readme.splitlines() if x.startswith(f"    {group}/")]
        shown = {w.strip(",") for w in re.split(r"  +", line.strip())[-1].split()}
        assert shown == set(there[group]), group


def test_the_help_lists_every_group_and_option_and_verb(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    with front() as loader:
        for group, options in groups(loader).items():
            assert group in text
            assert all(option in text for option in options)
    assert max(map(len, text.splitlines())) <= 120


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text())
    assert len(links) >= 5
    assert [x for x in links if not (ROOT / x).exists()] == []
