"""Hydra's own views of a config, for a config that has passed every check: `--cfg hydra|all` and `--info`."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf

from tuneforge.compose import Composed
from tuneforge.config_bounds import bounded_interpolations
from tuneforge.front import CONFIG_NAME, front, groups_in_defaults
from tuneforge.overrides import normalise


def with_hydra(composed: Composed, wanted: str) -> dict[str, Any]:
    """The config with Hydra's node as the option files have it (`all`), or that node alone (`hydra`)."""
    with bounded_interpolations(), front(composed.config_dirs) as loader:
        tree = loader.load_configuration(CONFIG_NAME, _lines(composed, loader), RunMode.RUN)
    node = OmegaConf.to_container(tree.hydra, resolve=False)
    return {"hydra": node} if wanted == "hydra" else {**composed.recorded, "hydra": node}


def print_info(composed: Composed, topic: str) -> None:
    """Print what Hydra knows of the composition."""
    with _logging_kept(), bounded_interpolations(), front(composed.config_dirs) as loader:
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.show_info(topic, CONFIG_NAME, _lines(composed, loader), RunMode.RUN)


@contextmanager
def _logging_kept() -> Iterator[None]:
    """Let Hydra log, and restore all loggers afterwards: its `show_info` has every library log to this stdout.

    A library that configures logging (alembic, for Optuna's database) disables the loggers that exist.
    """
    root, its = logging.getLogger(), logging.getLogger(Hydra.__module__)
    level, handlers, disabled = root.level, list(root.handlers), its.disabled
    its.disabled = False
    try:
        yield
    finally:
        its.disabled = disabled
        root.setLevel(level)
        for handler in [h for h in root.handlers if h not in handlers]:
            root.removeHandler(handler)


def _lines(composed: Composed, loader: Any) -> list[str]:
    lines, _, problems = normalise(loader, composed.overrides, groups_in_defaults())
    assert not problems  # it has been composed
    return lines
