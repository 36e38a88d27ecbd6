"""Our door to Hydra: its loader over our option files, the plugins' and the user's, and what can be chosen there."""

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import initialize_config_search_path
from hydra._internal import config_loader_impl
from hydra._internal.defaults_list import DefaultsList
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.plugins.config_source import ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from tuneforge.errors import TuneforgeError
from tuneforge.option_files import CONFIG_MODULE, OPTIONS, PLUGIN, SWEEPS, SWEEPS_MODULE, Options, Sweeps
from tuneforge.plugins import registry
from tuneforge.plugins.discovery import discover

CONFIG_NAME = "config"
CONFIG_DIR = "config-dir"
"""What Hydra calls the provider of the folders of --config-dir."""


class _MoreSources(SearchPathPlugin):
    """Appends sweeps/, the plugins' configs and the folders of --config-dir; never prepends: nothing is shadowed."""

    sources: tuple[tuple[str, Path], ...] = ()
    """Provider and folder."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(SWEEPS, f"{SWEEPS}://{SWEEPS_MODULE}")
        for provider, folder in self.sources:
            search_path.append(provider, f"{OPTIONS}://{folder}")


@contextmanager
def front(config_dirs: Sequence[Path] = ()) -> Iterator[ConfigLoader]:
    """Hydra's loader over our option files, the plugins' and those of `config_dirs`."""
    missing = [d for d in config_dirs if not d.is_dir()]
    if missing:
        raise TuneforgeError(
            "no-config-dir",
            f"--config-dir {missing[0]}: there is no such folder",
            fix=f"looked at {missing[0].absolute()}",
        )
    registry.use(discover())
    _MoreSources.sources = (
        *((f"{PLUGIN}{p.name}", p.conf) for p in registry.healthy() if p.conf is not None),
        *((CONFIG_DIR, d.resolve()) for d in config_dirs),
    )
    plugins = Plugins.instance()
    for ours, kind in ((Options, ConfigSource), (Sweeps, ConfigSource), (_MoreSources, SearchPathPlugin)):
        if ours not in plugins.discover(kind):
            plugins.register(ours)
    # A job of a sweep composes inside of Hydra's own main, whose state must be there again afterwards.
    outer = Singleton.get_state() if GlobalHydra.instance().is_initialized() else None
    GlobalHydra.instance().clear()
    try:
        with (
            warnings.catch_warnings(),
            initialize_config_search_path([f"{OPTIONS}://{CONFIG_MODULE}"], job_name="tuneforge"),
        ):
            # Of `extend_list(...)` and `json_str(...)`: warnings for developers, where a user reads our own messages.
            warnings.filterwarnings("ignore", message=r".*will be removed in Hydra 1\.5")
            yield GlobalHydra.instance().config_loader()
    finally:
        if outer is not None:
            Singleton.set_state(outer)


@contextmanager
def noted_defaults() -> Iterator[list[DefaultsList]]:
    """The defaults lists that Hydra resolves within.

    Its loader does not keep them, and `compute_defaults_list` resolves one again, a fifth of the time of a composition
    (hydra-core 1.4). This goes when the loader hands them out.
    """
    noted: list[DefaultsList] = []
    module: Any = config_loader_impl
    resolve = module.create_defaults_list

    def noting(*args: Any, **options: Any) -> DefaultsList:
        noted.append(resolve(*args, **options))
        return noted[-1]

    module.create_defaults_list = noting
    try:
        yield noted
    finally:
        module.create_defaults_list = resolve


def groups(loader: ConfigLoader) -> dict[str, list[str]]:
    """Group -> its options, of every folder on the search path."""
    found = {g: loader.get_group_options(g) for g in loader.list_groups("") if g != "hydra" and not g.startswith("_")}
    return {g: options for g, options in found.items() if options}


@functools.cache
def groups_in_defaults() -> frozenset[str]:
    """Groups of which every run has an option. Ours alone say so: a folder of the user's cannot shadow config.yaml."""
    defaults = Options("main", f"{OPTIONS}://{CONFIG_MODULE}").data(CONFIG_NAME)["defaults"]
    chosen = [next(iter(entry)) for entry in defaults if isinstance(entry, dict)]
    return frozenset(group for group in chosen if not group.startswith("override "))
