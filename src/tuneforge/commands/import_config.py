"""`tuneforge import FILE`: a config of Axolotl, LLaMA-Factory or TRL as a command line and an experiment of ours."""

import json
import shlex
import textwrap
from pathlib import Path
from typing import Any

from tuneforge.artifacts.folder import write_text
from tuneforge.commands.request import Request
from tuneforge.errors import EXIT_OK, TuneforgeError
from tuneforge.importers.common import dialects, translate
from tuneforge.importers.translation import Translation, command_line, experiment, overrides

WIDTH = 118
"""Columns of the console output."""


def run(request: Request) -> int:
    """Translate FILE and print it, or write the experiment to `--out`.

    Raises:
        TuneforgeError: there is no such training here; the keys are listed all the same, without a command.
    """
    path = _file(request)
    out: Path | None = request.flags.out
    if out is not None and (out.exists() or out.is_symlink()):
        raise TuneforgeError(
            "file-exists", f"--out {out} exists already", fix="name a new file; import never overwrites"
        )
    translation = translate(path)
    text = "" if translation.replaced else experiment(translation, out)
    if out is not None and text:
        write_text(out, text)
    print(_as_json(translation, text) if request.flags.json else _as_text(translation, text, path, out))  # noqa: T201
    if translation.replaced:
        raise TuneforgeError(
            "no-such-training",
            f"{path} cannot be imported: {'; '.join(translation.replaced)}",
            fix="there is no command that does the same; for supervised fine-tuning on its rows, write one with "
            "task_recipe=instruct",
        )
    return EXIT_OK


def _file(request: Request) -> Path:
    if len(request.words) != 1 or request.overrides:
        given = " ".join([*request.words, *request.overrides]) or "nothing"
        raise TuneforgeError(
            "no-import-file",
            f"import takes one file, and was given {given}",
            fix="run `python -m tuneforge import FILE`",
        )
    return Path(request.words[0])


def _as_json(translation: Translation, text: str) -> str:
    answer = {
        "dialect": translation.dialect,
        "command": command_line(translation) if text else None,
        "experiment": text or None,
        "left": [{"key": entry.key, "value": entry.value, "why": entry.why} for entry in translation.left],
        "notes": translation.notes,
    }
    return json.dumps(answer, indent=2, ensure_ascii=False, default=str)


def _as_text(translation: Translation, text: str, path: Path, out: Path | None) -> str:
    parts = [f"{path} is a config of {dialects()[translation.dialect].title}"]
    if text:
        parts += [_command(translation), _experiment(text, out)]
    counted = f"carried {len(translation.carried)} keys; not carried {len(translation.left)}"
    parts.append("\n".join([counted + (":" if translation.left else ""), *_left(translation)]))
    if translation.notes:
        parts.append("\n".join(["notes:", *(_filled(note, "  - ", "    ") for note in translation.notes)]))
    return "\n\n".join(part.rstrip() for part in parts)


def _experiment(text: str, out: Path | None) -> str:
    if out is None:
        return "as an experiment (save it with --out DIR/experiment/NAME.yaml):\n\n" + textwrap.indent(text, "  ")
    hint = "" if out.parent.name == "experiment" else "; to be used, it must lie in a folder named experiment"
    return f"experiment written to {out}{hint}"


def _command(translation: Translation) -> str:
    """The command in lines that can be pasted as they are."""
    one = command_line(translation)
    if len(one) <= WIDTH:
        return one
    quoted = [command_line(Translation("", {}, {}))]
    for override in overrides(translation):
        word = shlex.quote(override)
        if len(quoted[-1]) + len(word) + 3 > WIDTH:
            quoted.append(f"  {word}")
        else:
            quoted[-1] += f" {word}"
    return " \\\n".join(quoted)


def _left(translation: Translation) -> list[str]:
    """`key = value   why`, aligned, with the reason wrapped in its own column."""
    heads = [f"  {entry.key} = {_shown(entry.value)}" for entry in translation.left]
    column = min(max(map(len, heads), default=0), 50) + 3
    lines = []
    for head, entry in zip(heads, translation.left, strict=True):
        first = head.ljust(column) if len(head) < column else f"{head}   "
        lines.append(_filled(entry.why, first, " " * column))
    return lines


def _filled(text: str, first: str, rest: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 36 else text[:33] + "..."
