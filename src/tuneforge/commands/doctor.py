"""`tuneforge doctor`: what this machine can run, what is missing, and the command that mends each thing."""

import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict

from rich.text import Text

from tuneforge import rules
from tuneforge.commands.request import Request
from tuneforge.console import console, quiet_libraries
from tuneforge.doctor import Check, diagnose
from tuneforge.errors import EXIT_OK, EXIT_USER, Problem, TuneforgeError

COLOURS = {"ok": "green", "missing": "cyan", "warn": "yellow", "fail": "red"}


def run(request: Request) -> int:
    """Print what was found, or the rules between the groups with `--rules`.

    Raises:
        TuneforgeError: the default job cannot run here; one problem for each reason.
    """
    if request.flags.rules:
        if request.overrides:
            message = f"--rules lists all rules, of no config: {request.overrides[0]}"
            raise TuneforgeError("too-many-words", message, fix="drop it; plan says what a config breaks")
        return _print_rules(request.flags.json)
    quiet_libraries()
    with nullcontext() if request.flags.json or not console.is_terminal else console.status("trying the libraries"):
        checks = diagnose(request.compose)
    failing = [check for check in checks if check.status == "fail"]
    if request.flags.json:
        print(json.dumps({"ok": not failing, "checks": [asdict(c) for c in checks]}, ensure_ascii=False))  # noqa: T201
        return EXIT_USER if failing else EXIT_OK
    _print_checks(checks)
    if failing:
        raise TuneforgeError.of(
            Problem("machine-not-ready", f"the default job cannot run here: {c.name}: {c.found}", fix=c.fix)
            for c in failing
        )
    console.print("\nthe default job can run here", *[f": {c.found}" for c in checks if c.name == "hardware"], sep="")
    return EXIT_OK


def _print_checks(checks: Sequence[Check]) -> None:
    width = max(len(check.name) for check in checks)
    for check in checks:
        status = Text(f"{check.status:<9}", style=COLOURS[check.status])
        console.print(Text.assemble(status, f"{check.name:<{width}}  {check.found}"))
        if check.status != "ok":
            console.print(Text(f"{'':<9}{'':<{width}}    {check.fix}"))


def _print_rules(as_json: bool) -> int:
    listed = rules.listing()
    if as_json:
        print(json.dumps({"rules": [{"name": n, "rule": r} for n, r in listed]}, ensure_ascii=False))  # noqa: T201
        return EXIT_OK
    width = max(len(name) for name, _ in listed)
    for name, rule in listed:
        console.print(f"{name:<{width}}  {rule}", markup=False)
    return EXIT_OK
