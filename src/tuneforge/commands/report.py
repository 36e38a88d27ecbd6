"""`tuneforge report FOLDER`: what a sweep found, or the page of a run, from what its folder keeps."""

from pathlib import Path

from jinja2 import UndefinedError

from tuneforge.artifacts.claim import write_gone
from tuneforge.artifacts.folder import is_marked
from tuneforge.artifacts.kept import damaged
from tuneforge.artifacts.report import write_report
from tuneforge.commands.request import Request
from tuneforge.console import say
from tuneforge.errors import EXIT_OK, TuneforgeError


def run(request: Request) -> int:
    """Write the page of the folder; of a sweep, print the answer too."""
    if len(request.words) != 1:
        raise TuneforgeError(
            "no-folder", f"report wants one folder, got {len(request.words)}", fix="tuneforge report RUN, or a sweep's"
        )
    root, key = Path(request.words[0]), "hydra.sweeper.storage="
    others = [o for o in request.overrides if not o.startswith(key)]
    if others:
        message = f"report composes no config: {others[0]}"
        raise TuneforgeError("too-many-words", message, fix=f"drop it; a sweep's database is named with {key}URL")
    if (root / "run.json").is_file():
        _refuse_to_overwrite(root)
        say(str(_page(root)))
        write_gone(root)
        return EXIT_OK
    from tuneforge.study.answer import Answer

    typed = [o.partition("=")[2].strip("'\"") for o in request.overrides if o.startswith(key)]
    answer = Answer.read(root, typed[-1] if typed else None)
    _refuse_to_overwrite(root)
    answer.tell()
    return EXIT_OK


def _page(root: Path) -> Path:
    """The page of a run's folder, which may come from anywhere.

    Raises:
        TuneforgeError: a file of it holds something else than a run writes there.
    """
    try:
        return write_report(root)
    except (UndefinedError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise damaged(root, f"holds a run.json or metrics.jsonl that is no run's: {error}") from error


def _refuse_to_overwrite(root: Path) -> None:
    """Nothing, where the page and the experiment are not there, or the folder has the marker of a run or sweep."""
    for file in (root / "report.html", root / "experiment" / "best.yaml"):
        if file.exists() and not is_marked(root):
            message = f"{file} exists, and {root} has no marker, so that it may not be what a run wrote"
            raise TuneforgeError("file-exists", message, fix="move the file away; nothing is overwritten")
