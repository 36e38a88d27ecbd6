"""`tuneforge train`: compose, then run; with `--cfg job`, compose and print."""

from tuneforge.commands.request import Request
from tuneforge.errors import EXIT_OK


def run(request: Request) -> int:
    """Train, or print the resolved config."""
    composed = request.compose()
    if request.flags.cfg:
        from tuneforge.help import config_text

        print(config_text(composed, request.flags.package))  # noqa: T201
        return EXIT_OK
    from tuneforge.train import launch

    return launch(composed)
