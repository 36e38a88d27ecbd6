"""The command line: which verb, which flags, and how every outcome becomes an exit code."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tuneforge import __version__, masking
from tuneforge.commands.request import Request
from tuneforge.console import unbroken_output
from tuneforge.errors import (
    EXIT_BUG,
    EXIT_OK,
    EXIT_SIGINT,
    JSON_ERRORS,
    TuneforgeError,
    did_you_mean,
    disk_error,
    near,
    print_problems,
)
from tuneforge.shell import home_quoted, local_path
from tuneforge.world import enter, find_world, is_main_process


@dataclass(frozen=True)
class Verb:
    """One verb: what `--help` says of it, and the module of `tuneforge.commands` whose `run` does it."""

    does: str
    module: str
    flags: tuple[str, ...] = ()
    """The flags it takes beside those of every verb."""
    word: str = ""
    """What its arguments without `=` are; "" when it takes none."""
    example: str = ""
    """Arguments behind the verb, for its help."""


VERBS = {
    "train": Verb(
        "fine-tune (the default); --from RUN repeats a run, with overrides from there; --multirun searches",
        "train",
        ("--from", "--multirun", "--cfg", "--info", "--package", "--resolve"),
        "RUN",
        "model=hf model.path=DIR data=file data.path=rows.jsonl",
    ),
    "plan": Verb(
        "what would run and whether it fits; --why KEY: what set a value; --diff RUN [RUN]: what two runs differ in",
        "plan",
        ("--from", "--why", "--diff", "--json"),
        "RUN",
        "method=qlora hardware=rtx4090",
    ),
    "lr_find": Verb(
        "a learning-rate range test on a slice of the data: a plot, and a value to paste",
        "lr_find",
        ("--from",),
        "RUN",
        "method=dora lr_find.steps=60",
    ),
    "report": Verb(
        "what a sweep found, or a run: its page written again", "report", word="FOLDER", example="outputs/RUN"
    ),
    "plugins": Verb(
        "which plugins there are and what they add; new NAME --kind KIND writes one, check DIR tries one",
        "plugins",
        ("--json", "--kind"),
        "new NAME, check DIR",
        "new mine --kind method",
    ),
    "doctor": Verb(
        "what this machine can run, and the command that mends what is missing; --rules: what cannot go together",
        "doctor",
        ("--json", "--rules"),
        example="--rules",
    ),
    "import": Verb(
        "read an Axolotl, LLaMA-Factory or TRL config: the command that does the same, and what it cannot carry",
        "import_config",
        ("--out", "--json"),
        "FILE",
        "axolotl.yaml --out options/experiment/mine.yaml",
    ),
}

BESIDE = {"--package": "--cfg", "--resolve": "--cfg"}
"""Flags that say something about another flag's answer, and do nothing without it."""
APART = (("--cfg", "--info"), ("--why", "--diff"))
"""Flags of which one command answers one."""

NOT_HERE = {
    "--hydra-help": "run `python -m tuneforge --help`; --info shows what Hydra composes",
    "--shell-completion": "run `python -m tuneforge --help`: it lists the groups and their options",
    "-sc": "run `python -m tuneforge --help`: it lists the groups and their options",
    "--run": "leave it out: a command without --multirun is one run",
    "-r": "leave it out: a command without --multirun is one run",
    "--config-name": "put your options into a folder and name it: --config-dir DIR",
    "-cn": "put your options into a folder and name it: --config-dir DIR",
    "--config-path": "put your options into a folder and name it: --config-dir DIR",
    "-cp": "put your options into a folder and name it: --config-dir DIR",
    "--experimental-rerun": "start from a run's folder: --from RUN",
}
"""Flags of Hydra's command line that would go past our checks, and what does the same."""
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What `--info` shows."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TuneforgeError("bad-flag", message, fix="run `python -m tuneforge --help`")


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    masking.forget()
    masking.remember_typed(argv)
    with unbroken_output(), _json_errors("--json-errors" in argv), masking.masked_output():
        try:
            return _run([a for a in argv if a != "--json-errors"])
        except TuneforgeError as error:
            if os.environ.get("TUNEFORGE_DEBUG") == "1":
                traceback.print_exc()
            if is_main_process():
                print_problems(error.problems)
            return error.exit_code
        except KeyboardInterrupt:
            if is_main_process():
                print("interrupted", file=sys.stderr)  # noqa: T201
            return EXIT_SIGINT
        except Exception as error:
            full = disk_error(error)
            if full is not None:
                print_problems(full.problems)
                return full.exit_code
            traceback.print_exc()  # our fault, or a library's: shown whole
            return EXIT_BUG


@contextmanager
def _json_errors(wanted: bool) -> Iterator[None]:
    """Problems as JSON in this command and in the processes it starts."""
    before = os.environ.get(JSON_ERRORS)
    if wanted:
        os.environ[JSON_ERRORS] = "1"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ[JSON_ERRORS]


def _parser() -> _Parser:
    """Every flag there is; a verb's own stand in its entry of `VERBS` too."""
    parser = _Parser(prog="tuneforge", add_help=False, allow_abbrev=False)
    add = parser.add_argument
    add("--help", "-h", action="store_true", help="this text")
    add("--version", action="store_true", help="print the version")
    add("--config-dir", "-cd", type=local_path, action="append", default=[], metavar="DIR",
        help="option files of your own, in folders named like the groups")  # fmt: skip
    add("--cfg", "-c", choices=["job", "hydra", "all"],
        help="print the resolved config (job), Hydra's node or both, and stop")  # fmt: skip
    add("--info", "-i", choices=INFO, help="print how Hydra composes the config, and stop")
    # Hydra's flag; what it asks for is what ours does anyway: the printed config is always resolved.
    add("--resolve", action="store_true", help="with --cfg: as without it, since the printed config is resolved")
    add("--package", "-p", metavar="KEY", help="with --cfg: one node of the config, such as optim")
    add("--multirun", "-m", action="store_true",
        help="a search: every combination of comma-separated values, intervals, or +sweep=NAME")  # fmt: skip
    add("--from", type=local_path, dest="base", metavar="RUN",
        help="start from the config of a run folder; overrides follow")  # fmt: skip
    add("--json", action="store_true", help="the answer as JSON")
    add("--why", metavar="KEY", help="what set a value, and what it would be without")
    add("--diff", type=local_path, nargs="+", metavar="RUN",
        help="how two runs differ, or a run and this command's config")  # fmt: skip
    add("--rules", action="store_true", help="list what cannot go together")
    add("--kind", help="what kind of plugin to write")
    add("--out", type=local_path, metavar="FILE", help="write the experiment to a new file")
    return parser


COMMON = ("--help", "--version", "--config-dir")


def _run(argv: list[str]) -> int:
    _refuse_hydras(argv)
    flags, rest = _parser().parse_known_args(_with_topic(argv))
    request = _request(flags, rest)
    if flags.version:
        return _say(__version__)
    if flags.help:
        return _say(_help(flags, rest))
    enter(find_world())
    if flags.multirun:
        return _multirun(request)
    module = importlib.import_module(f"tuneforge.commands.{VERBS[request.verb].module}")
    run_verb: Callable[[Request], int] = module.run
    return run_verb(request)


def _help(flags: argparse.Namespace, rest: Sequence[str]) -> str:
    """The page of the verb that is named, else that of the program."""
    from tuneforge.help import flag_line, help_text, verb_text

    name = next((a for a in rest if "=" not in a), None)
    if name not in VERBS:
        return help_text({name: v.does for name, v in VERBS.items()}, flags.config_dir)
    verb = VERBS[name]
    actions = {action.option_strings[0]: action for action in _parser()._actions}
    lines = [flag_line(actions[flag]) for flag in (*verb.flags, *COMMON)]
    return verb_text(name, verb.does, verb.word, verb.example, lines)


def _refuse_hydras(argv: Sequence[str]) -> None:
    given = next((a.partition("=")[0] for a in argv if a.partition("=")[0] in NOT_HERE), None)
    if given is not None:
        raise TuneforgeError("unknown-flag", f"{given} is Hydra's own, and not here", fix=NOT_HERE[given])


def _with_topic(argv: Sequence[str]) -> list[str]:
    """`--info` alone shows everything; argparse would take the next argument for its topic."""
    following = [*argv[1:], ""]
    bare = ("--info", "-i")
    return [f"--info={INFO[0]}" if a in bare and _no_topic(n) else a for a, n in zip(argv, following, strict=True)]


def _no_topic(word: str) -> bool:
    """Whether a word behind `--info` is something else, and not a topic or a misspelt one."""
    return word in VERBS or not word or word.startswith(("-", "~")) or "=" in word or Path(word).is_dir()


def _request(flags: argparse.Namespace, rest: list[str]) -> Request:
    """The command as typed; an unknown verb or flag, and a flag of another verb, are refused."""
    unknown = [a for a in rest if a.startswith("-")]
    if unknown:
        known = [o for action in _parser()._actions for o in action.option_strings] + list(NOT_HERE)
        raise TuneforgeError(
            "unknown-flag", f"there is no flag {unknown[0]}", fix=did_you_mean(unknown[0].partition("=")[0], known)
        )
    # `~/x` is a path; `~key` deletes a key.
    words = [a for a in rest if "=" not in a and (not a.startswith("~") or a == "~" or a.startswith("~/"))]
    overrides = [home_quoted(a) for a in rest if a not in words]
    words = [str(local_path(w)) for w in words]
    verb = "train"
    if words and words[0] in VERBS:
        verb = words.pop(0)
    elif words and not Path(words[0]).exists():
        raise _no_such_verb(words[0])
    _check_flags(verb, flags)
    if words and not VERBS[verb].word:
        raise TuneforgeError("too-many-words", f"{verb} takes no argument {words[0]!r}", fix="an override is key=value")
    return Request(verb, tuple(words), tuple(overrides), flags)


def _no_such_verb(word: str) -> TuneforgeError:
    close = near(word, VERBS)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return TuneforgeError(
        "unknown-verb",
        f"there is no verb {word!r}",
        fix=f"{hint}verbs: {', '.join(VERBS)}; an override is written key=value, a run is named by its folder",
    )


def _check_flags(verb: str, flags: argparse.Namespace) -> None:
    actions = _parser()._actions
    for action in actions:
        (name, *_) = action.option_strings
        given = getattr(flags, action.dest) != action.default
        if given and name not in (*COMMON, *VERBS[verb].flags):
            takers = [v for v, entry in VERBS.items() if name in entry.flags]
            raise TuneforgeError(
                "flag-of-another-verb", f"{verb} has no flag {name}", fix=f"it goes with: {', '.join(takers)}"
            )
    if not (flags.help or flags.version):
        _check_together({a.option_strings[0] for a in actions if getattr(flags, a.dest) != a.default})


def _check_together(given: Collection[str]) -> None:
    """Refuse a flag that would do nothing: without it, the command may be a run of hours."""
    for flag, other in BESIDE.items():
        if flag in given and other not in given:
            message = f"{flag} is about what {other} prints, and there is no {other}"
            raise TuneforgeError("flags-together", message, fix=f"add {other} job")
    for one, other in APART:
        if one in given and other in given:
            message = f"{one} and {other} are two questions, and a command answers one"
            raise TuneforgeError("flags-together", message, fix="ask one after the other")


def _multirun(request: Request) -> int:
    """A sweep; what is swept and what is fixed are checked before the first trial starts."""
    if request.base is not None:
        raise TuneforgeError("sweep-of-a-run", "--multirun does not start from a run", fix="sweep over an experiment")
    if request.flags.cfg is not None or request.flags.info is not None:
        message = "--multirun has a config for each trial, and --cfg and --info show one"
        raise TuneforgeError("cfg-of-a-sweep", message, fix="give it the values of one trial, without --multirun")
    if find_world().size > 1:
        raise TuneforgeError(
            "sweep-under-launcher",
            "under torchrun or srun each process would sweep for itself",
            fix="start one process: each trial starts its own (trainer.devices=N)",
        )
    from tuneforge.study.command import sweep

    return sweep(request.overrides, request.flags.config_dir)


def _say(text: str) -> int:
    print(text)  # noqa: T201
    return EXIT_OK
