"""Every verb with every flag over every group: it does what it is for or says why not, and writes where it should.

Two flags meet one option each, and one flag an option of each group; the options of a group come in turn, so that every
option file is used. Nothing trains: what would is replaced by a function that notes it.
"""

import itertools
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import SHORT
from tuneforge.cli import COMMON, NOT_HERE, VERBS, run
from tuneforge.compose import Composed
from tuneforge.doctor.facts import Step
from tuneforge.front import front, groups

FOREIGN = Path(__file__).parents[1] / "unit" / "foreign_configs" / "axolotl_qlora.yaml"
NEEDS = {"data=file": ["data.path=rows.jsonl"], "model=hf": ["model.path=models/mine"]}
# What a flag is given. RUN, DIR and NEW are folders and a file of the test.
VALUES = {
    **{flag: [[]] for flag in ("--help", "--version", "--multirun", "--resolve", "--json", "--rules")},
    "--config-dir": [["DIR"]],
    "--from": [["RUN"], ["nowhere"]],
    "--cfg": [["job"], ["hydra"], ["all"]],
    "--package": [["model"], ["model.name"], ["no.such"]],
    "--why": [["optim.lr"], ["optim"], ["no.such"]],
    "--diff": [["RUN"], ["RUN", "RUN"], ["nowhere"]],
    "--kind": [["method"], ["nothing"]],
    "--out": [["NEW"]],
    "--info": [[], ["defaults"]],
}
WORDS = {"report": [["RUN"], []], "import": [["FOREIGN"], []], "plugins": [[], ["new", "mine"], ["check", "nowhere"]]}
READS_ONLY = ("plan", "report", "doctor", "import")
"""Verbs that leave nothing in the working directory; `--out` and `report RUN` write where they are told."""


def given(flag: str) -> list[list[str]]:
    return [[flag, *values] for values in VALUES[flag]]


def commands(verb: str) -> Iterator[list[str]]:
    """The verb with each flag and with each two of its flags, without an option."""
    words = WORDS.get(verb, [[]])
    flags = [*COMMON, *VERBS[verb].flags]
    yield from ([verb, *w] for w in words)
    for flag in flags:
        yield from ([verb, *words[0], *f] for f in given(flag))
    for one, other in itertools.combinations(flags, 2):
        yield [verb, *words[0], *given(one)[0], *given(other)[0]]


@pytest.fixture(scope="module")
def options() -> dict[str, list[str]]:
    with front() as loader:
        return groups(loader)


@pytest.fixture
def tried(tmp_path, monkeypatch, capfd, finished):
    """Run a command in an empty folder; fails where it ends in anything but an answer."""
    here, outside = tmp_path / "here", tmp_path / "outside"
    run_folder = finished(*SHORT, "samples.num=0").copied(outside / "run").folder
    (outside / "dir").mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("tuneforge.train.launch", trained)
    monkeypatch.setattr("tuneforge.doctor.ask_libraries", lambda modules: defaultdict(lambda: Step(error="not tried")))
    found = SimpleNamespace(rates=[1e-4, 1e-3], smoothed=[2.0, 1.0], diverged=False, suggested=1e-3)
    monkeypatch.setattr("tuneforge.lr_find.find", lambda *_: found)
    stand_for = {"RUN": run_folder, "DIR": outside / "dir", "NEW": here / "new.yaml", "FOREIGN": FOREIGN}
    faults: list[str] = []

    def call(command: list[str]) -> object:
        arguments = [str(stand_for.get(a, a)) for a in command]
        before = listing(outside)
        capfd.readouterr()
        try:
            code: object = run(arguments)
        except SystemExit as ended:
            code = f"SystemExit({ended.code})"
        said = capfd.readouterr()
        wrong = [f"ended in {code}"] if code not in (0, 2, 3) else []
        wrong += ["a traceback"] if "Traceback" in said.err else []
        wrong += (
            ["an error that is none"] if code == 2 and "--json" not in command and "error: " not in said.err else []
        )
        wrong += ["wrote outside"] if listing(outside) != before else []
        left = sorted(p.name for p in here.iterdir())
        wrong += [f"left {left}"] if left and command[0] in READS_ONLY and "--out" not in command else []
        if wrong:
            faults.append(f"{' '.join(command)}: {', '.join(wrong)}: {said.err.strip().splitlines()[-1:]}")
        for path in here.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return code

    yield call
    assert not faults, f"{len(faults)} of the commands:\n" + "\n".join(faults)


def trained(composed: Composed) -> int:
    """In the place of training: a record of it."""
    composed.run_dir.mkdir(parents=True, exist_ok=True)
    after = dict.fromkeys(("eval/loss", "forgetting_check/largest_fall"), 1.0)
    record = {"status": "done", "metrics": {"after": after}, "overrides": composed.overrides}
    (composed.run_dir / "run.json").write_text(json.dumps(record))
    return 0


def listing(folder: Path) -> list[Path]:
    """All that is below, less the page that `report RUN` writes again."""
    return sorted(p for p in folder.rglob("*") if p.name != "report.html")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_with_its_flags_over_the_groups_ends_in_an_answer(verb, tried, options):
    turns = {group: itertools.cycle(names) for group, names in options.items()}
    every = itertools.cycle(options)

    def option(command: list[str], group: str) -> list[str]:
        choice = f"{group}={next(turns[group])}"
        if group == "sweep":
            return [f"+{choice}", *(["hydra.sweeper.n_trials=1"] if "--multirun" in command else [])]
        return [choice, *NEEDS.get(choice, [])]

    for command in commands(verb):
        tried([*command, *option(command, next(every))])
    for flag in VERBS[verb].flags:
        for group in options:
            command = [verb, *WORDS.get(verb, [[]])[0], *given(flag)[0]]
            tried([*command, *option(command, group)])


@pytest.mark.parametrize("verb", VERBS)
def test_a_flag_of_another_verb_is_refused(verb, tried):
    every = {flag for entry in VERBS.values() for flag in entry.flags}
    for flag in sorted(every - set(VERBS[verb].flags)):
        assert tried([verb, *given(flag)[0], "seed=3"]) == 2


@pytest.mark.parametrize("flag", NOT_HERE)
def test_a_flag_that_hydra_has_and_we_have_not_is_refused_with_what_to_do(flag, tried):
    for verb in VERBS:
        assert tried([verb, flag, "optim=lion"]) == 2
