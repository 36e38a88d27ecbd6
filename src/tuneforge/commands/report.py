"""`tuneforge report FOLDER`: what a sweep found, or the page of a run, from what its folder keeps."""

from pathlib import Path

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
    root = Path(request.words[0])
    if (root / "run.json").is_file():
        say(str(write_report(root)))
        return EXIT_OK
    from tuneforge.study.answer import Answer

    Answer.read(root).tell()
    return EXIT_OK
