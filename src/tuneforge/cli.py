"""The command line: which verb, which flags, and how every outcome becomes an exit code."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from tuneforge import __version__
from tuneforge.errors import EXIT_BUG, EXIT_OK, EXIT_SIGINT, TuneforgeError, did_you_mean, near, print_problems

VERBS = {"train": "fine-tune (the default)"}

# Hydra's own way of looking at its configs: handed to Hydra untouched.
HYDRA_FLAGS = ("--hydra-help", "--info", "-i", "--shell-completion", "-sc")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TuneforgeError("bad-flag", message, fix="run `python -m tuneforge --help`")


def run(argv: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        return _run(list(argv))
    except TuneforgeError as error:
        if os.environ.get("TUNEFORGE_DEBUG") == "1":
            traceback.print_exc()
        print_problems(error.problems)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception:  # our fault, or a library's: shown whole
        traceback.print_exc()
        return EXIT_BUG


def _parser() -> _Parser:
    parser = _Parser(prog="tuneforge", add_help=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[])
    return parser


def _run(argv: list[str]) -> int:
    if any(a.partition("=")[0] in HYDRA_FLAGS for a in argv):
        return _hydra(argv)
    flags, rest = _parser().parse_known_args(argv)
    verb, overrides = _verb(rest)
    if flags.version:
        return _say(__version__)
    if flags.help:
        from tuneforge.help import help_text

        return _say(help_text(verb, VERBS, flags.config_dir))
    if flags.multirun:
        return _multirun(overrides, flags.config_dir)
    if flags.cfg in ("hydra", "all"):
        return _hydra(argv)
    from tuneforge.compose import compose

    composed = compose(overrides, flags.config_dir)
    if flags.cfg:
        from tuneforge.help import config_text

        return _say(config_text(composed, flags.package))
    from tuneforge.train import launch

    return launch(composed)


def _verb(arguments: list[str]) -> tuple[str, list[str]]:
    """The verb, and the overrides after it; an unknown flag or verb is refused."""
    flags = [a for a in arguments if a.startswith("-")]
    if flags:
        known = [o for action in _parser()._actions for o in action.option_strings] + list(HYDRA_FLAGS)
        raise TuneforgeError(
            "unknown-flag", f"there is no flag {flags[0]}", fix=did_you_mean(flags[0].partition("=")[0], known)
        )
    if arguments and "=" not in arguments[0] and not arguments[0].startswith("~"):
        if arguments[0] in VERBS:
            return arguments[0], arguments[1:]
        close = near(arguments[0], VERBS)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise TuneforgeError(
            "unknown-verb",
            f"there is no verb {arguments[0]!r}",
            fix=f"{hint}verbs: {', '.join(VERBS)}; an override is written key=value",
        )
    return "train", arguments


def _multirun(overrides: list[str], config_dirs: list[Path]) -> int:
    """A Hydra sweep; what is swept and what is fixed are checked before the first job starts."""
    from tuneforge.compose import check_sweep

    folders = [part for folder in config_dirs for part in ("--config-dir", str(folder.resolve()))]
    return _hydra(["--multirun", *folders, *check_sweep(overrides, config_dirs)])


def _hydra(argv: list[str]) -> int:
    """Hand over to Hydra's own command line, with our training as the task."""
    import hydra
    from omegaconf import DictConfig

    from tuneforge.compose import CONFIG_MODULE, CONFIG_NAME

    codes: list[int] = []

    def task(job: DictConfig) -> float | None:
        from tuneforge.train import train_job

        code, score = train_job(job)
        codes.append(code)
        return score

    sys.argv = ["tuneforge", *[a for a in argv if a not in VERBS]]
    main: Callable[[], None] = hydra.main(f"pkg://{CONFIG_MODULE}", CONFIG_NAME, execution_whitelist=["tuneforge.*"])(
        task
    )
    main()
    return max(codes, default=EXIT_OK)


def _say(text: str) -> int:
    print(text)  # noqa: T201
    return EXIT_OK
