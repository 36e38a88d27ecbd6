"""`tuneforge train`: compose, then run; with `--cfg job`, compose and print."""

from tuneforge.commands.request import Request
from tuneforge.compose import Composed
from tuneforge.errors import EXIT_OK
from tuneforge.world import World, find_world


def run(request: Request) -> int:
    """Train, or print the resolved config."""
    world = find_world()
    if world.size > 1 and not (request.flags.cfg or request.flags.info):
        return _join(request, world)
    composed = request.compose()
    if request.flags.info:
        from tuneforge.hydra_views import print_info

        print_info(composed, request.flags.info)
        return EXIT_OK
    if request.flags.cfg:
        from tuneforge.help import config_text

        tree = composed.recorded
        if request.flags.cfg != "job":
            from tuneforge.hydra_views import with_hydra

            tree = with_hydra(composed, request.flags.cfg)
        print(config_text(tree, request.flags.package))  # noqa: T201
        return EXIT_OK
    from tuneforge.train import launch

    return launch(composed)


def _join(request: Request, world: World) -> int:
    """Train as one of several processes. The first alone composes, and imports nothing heavy before it has."""
    brought: Composed | Exception | None = None
    if world.rank == 0:
        try:
            brought = request.compose()
        except Exception as error:  # whatever it is, the others must hear of it
            brought = error
    from tuneforge.member import join

    return join(brought, world)
