"""`tuneforge lr_find`: a learning rate for this run, as an override to paste."""

from tuneforge.commands.request import Request
from tuneforge.console import quiet_libraries, say
from tuneforge.errors import EXIT_OK, TuneforgeError
from tuneforge.shell import again, command, key_of, setting
from tuneforge.world import find_world


def run(request: Request) -> int:
    """Grow the rate on a slice of the data until the loss diverges; numbers and a plot are kept, and no weights."""
    quiet_libraries()
    composed = request.compose()
    if composed.config.trainer.devices not in ("auto", 1) or find_world().size > 1:
        raise TuneforgeError(
            "lr-find-on-one-device", "lr_find runs on one device", path="trainer.devices", fix="start one process"
        )
    from tuneforge.boundary import library_errors_explained
    from tuneforge.compat import import_bitsandbytes
    from tuneforge.data import source
    from tuneforge.resume import fresh

    import_bitsandbytes()
    from tuneforge.lr_find import find

    kept = [
        o
        for o in again(request.overrides)
        if key_of(o) not in ("optim.lr", "lr_find") and not key_of(o).startswith(("lr_find.", "hydra."))
    ]

    def with_rate(rate: float) -> str:
        dirs = request.flags.config_dir
        return command(*kept, setting("optim.lr", float(f"{rate:g}")), config_dirs=dirs, base=request.base)

    settings = composed.config.lr_find
    rows = source.read(composed.config.data, composed.tree["data"], composed.config.seed)
    place = fresh(composed)
    with place.claim, library_errors_explained(composed.config, composed.tree):
        found = find(
            composed, source.slice_of(rows, settings.share, settings.at_least, composed.config.seed), place, with_rate
        )
    plot = place.folder.root / "lr_find.png"
    say(
        f"{len(found.rates)} steps from {found.rates[0]:.1e} to {found.rates[-1]:.1e}"
        f"{', where the loss diverged' if found.diverged else ''}"
    )
    say(f"lowest loss {min(found.smoothed):.3f} at {found.rates[found.smoothed.index(min(found.smoothed))]:.1e}")
    say(f"plot        {plot if plot.is_file() else 'pip install tuneforge[plot] draws one'}")
    say(f"suggested   optim.lr={found.suggested:g}   (this config has {composed.config.optim.lr:g})")
    say(f"report      {place.folder.report}")
    say(f"next        {with_rate(found.suggested)}")
    return EXIT_OK
