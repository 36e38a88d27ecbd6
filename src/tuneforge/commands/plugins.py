"""`tuneforge plugins`: which there are and what they add; `new NAME` writes one, `check FOLDER` tries one."""

import json
import re
from pathlib import Path
from typing import Any

from tuneforge.commands.request import Request
from tuneforge.errors import EXIT_OK, TuneforgeError, did_you_mean
from tuneforge.plugins.discovery import discover
from tuneforge.plugins.inspection import code_troubles
from tuneforge.plugins.plugin import Plugin
from tuneforge.shell import command

ACTIONS = ("new", "check")


def run(request: Request) -> int:
    """List, write or check plugins.

    Raises:
        TuneforgeError: no such action, or one without its argument.
    """
    if request.overrides:
        raise TuneforgeError("too-many-words", f"plugins composes no config: {request.overrides[0]}", fix="drop it")
    if not request.words:
        return _list(request.flags.json)
    action, *rest = request.words
    if action not in ACTIONS:
        raise TuneforgeError("unknown-verb", f"plugins has no action {action!r}", fix=did_you_mean(action, ACTIONS))
    if len(rest) != 1:
        what = "a name" if action == "new" else "a folder"
        raise TuneforgeError("too-many-words", f"plugins {action} takes {what}", fix=f"tuneforge plugins {action} X")
    return _new(rest[0], request.flags.kind or "method") if action == "new" else _check(Path(rest[0]))


def _list(as_json: bool) -> int:
    found = [_described(p) for p in discover()]
    if as_json:
        _print(json.dumps(found, indent=2))
        return EXIT_OK
    if not found:
        _print("no plugins: drop one into plugins/, pip install one, or write one with `tuneforge plugins new NAME`")
    for plugin in found:
        _print(f"{plugin['name']} {plugin['version']}   {plugin['origin']}")
        adds = "; ".join(f"{group}: {' '.join(options)}" for group, options in plugin["adds"].items())
        _print(f"    adds {adds or 'nothing'}")
        for trouble in plugin["troubles"]:
            _print(f"    broken: {trouble['cause']}\n        {trouble['mend']}")
    return EXIT_OK


def _described(plugin: Plugin) -> dict[str, Any]:
    troubles = [*plugin.troubles, *code_troubles(plugin)]
    return {
        "name": plugin.name,
        "version": plugin.version,
        "package": plugin.package,
        "origin": str(plugin.origin),
        "installed": plugin.installed,
        "adds": {group: list(options) for group, options in plugin.options.items()},
        "troubles": [{"cause": t.cause, "mend": t.mend} for t in troubles],
    }


def _new(name: str, kind: str) -> int:
    from tuneforge.plugins.scaffold import KINDS, write_plugin

    if not re.fullmatch(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*", name):
        raise TuneforgeError(
            "bad-plugin-name",
            f"{name!r} is no name for a plugin: lower-case letters, digits and single - or _ between them",
            fix="for example: tuneforge plugins new my-method --kind method",
        )
    if kind not in KINDS:
        raise TuneforgeError("unknown-kind", f"--kind {kind}: there is no such kind", fix=did_you_mean(kind, KINDS))
    folder, choice = write_plugin(Path("plugins") / name, name, kind)
    _print(f"wrote {folder}\n\nuse it    {command(choice)}")
    _print(f"check it  {command('plugins', 'check', str(folder))}\ntest it   python -m pytest {folder}")
    _print(f"ship it   pip install {folder}   (the same folder works without installing, while it lies in plugins/)")
    return EXIT_OK


def _check(folder: Path) -> int:
    from tuneforge.testing import check_plugin

    for line in check_plugin(folder):
        _print(f"ok  {line}")
    return EXIT_OK


def _print(text: str) -> None:
    print(text)  # noqa: T201
