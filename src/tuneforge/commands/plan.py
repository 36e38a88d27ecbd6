"""`tuneforge plan`: what would run and what it needs, why a value is what it is, and how two runs differ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuneforge.artifacts.kept import COMPARED, read_record
from tuneforge.commands.request import Request
from tuneforge.compose import Composed
from tuneforge.errors import EXIT_OK, EXIT_REFUSED, TuneforgeError


def run(request: Request) -> int:
    """Answer one of the three questions; nothing is loaded, written or trained.

    Returns:
        0, or 3 where the plan is for a run that does not fit.
    """
    if request.flags.diff is not None:
        return _diff(request)
    composed = request.compose()
    if request.flags.why is not None:
        return _why(composed, request)
    from tuneforge.plan.overview import overview, overview_text

    shown = overview(composed)
    _print(json.dumps(shown, indent=2) if request.flags.json else overview_text(composed, shown))
    return EXIT_REFUSED if shown["estimate"].get("holds") is False else EXIT_OK


def _why(composed: Composed, request: Request) -> int:
    from tuneforge.explain import explain, text

    found = explain(composed, request.flags.why)
    if request.flags.json:
        _print(json.dumps([e.as_dict() for e in found], indent=2, default=str))
    else:
        _print("\n\n".join(map(text, found)))
    return EXIT_OK


def _diff(request: Request) -> int:
    """Two runs, or a run and the config that is composed now."""
    from tuneforge.rerun import differences, read_run

    # argparse hands --diff every word after it, overrides included.
    after = [(str(word), word.exists() or "=" not in str(word)) for word in request.flags.diff]
    folders = [Path(word) for word, is_folder in after if is_folder] + [Path(word) for word in request.words]
    overrides = [*(word for word, is_folder in after if not is_folder), *request.overrides]
    if not folders or len(folders) > 2:
        raise TuneforgeError(
            "diff-takes-runs",
            f"--diff compares two runs, or a run and a config, and got {len(folders)} folders",
            fix="name one run and overrides, or two runs",
        )
    one = read_run(folders[0])
    if len(folders) == 2:
        if overrides or request.flags.base:
            given = " ".join([*overrides, *(["--from"] if request.flags.base else [])])
            raise TuneforgeError("too-many-words", f"--diff of two runs composes no config: {given}", fix="drop it")
        two = read_run(folders[1])
        tree, origins, facts = two.tree, two.origins, two.record
    else:
        composed = replace(request, words=(), overrides=tuple(overrides)).compose()
        tree, origins, facts = composed.recorded, composed.origins, {}
    found = differences(one.tree, tree, (one.origins, origins))
    others = _other_differences(*(read_record(folder, COMPARED) for folder in folders)) if facts else []
    if request.flags.json:
        shown = [{**vars(d), "before": _plain(d.before), "after": _plain(d.after)} for d in found]
        _print(json.dumps({"config": shown, "other": others}, indent=2, default=str))
        return EXIT_OK
    names = [str(f) for f in folders] + ["this command"] * (2 - len(folders))
    _print(f"{names[0]} -> {names[1]}: {len(found)} values differ")
    for difference in found:
        _print(f"  {difference.path}: {difference.before!r} -> {difference.after!r}")
        _print(f"      {difference.origin_before} -> {difference.origin_after}")
    for name, before, after in others:
        _print(f"  [{name}] {before} -> {after}")
    return EXIT_OK


def _other_differences(one: dict[str, Any], two: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Versions, data and results: what differs though the config may not."""
    facts = [(f"version of {n}", one["versions"].get(n), two["versions"].get(n)) for n in one["versions"]]
    facts += [("data", one["data"]["sha256"][:12], two["data"]["sha256"][:12]), ("git", one.get("git"), two.get("git"))]
    facts += [
        ("eval loss at the end", *(r["metrics"]["after"].get("eval/loss") for r in (one, two))),
    ]
    return [f for f in facts if f[1] != f[2]]


def _plain(value: Any) -> Any:
    from tuneforge.rerun import ABSENT

    return None if value is ABSENT else value


def _print(text: str) -> None:
    print(text)  # noqa: T201
