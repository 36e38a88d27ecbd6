"""`--multirun`: what was typed, through Hydra's own multirun, to a sweeper and a launcher."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from hydra._internal.execution_policy import execution_whitelist
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from tuneforge.compose import from_hydra, named_folder
from tuneforge.config_bounds import bounded_interpolations
from tuneforge.console import quiet_libraries
from tuneforge.errors import EXIT_OK, EXIT_REFUSED, Problem, TuneforgeError, disk_error
from tuneforge.front import CONFIG_NAME, front, groups_in_defaults
from tuneforge.overrides import circular, normalise
from tuneforge.study.processes import ProcessLauncher
from tuneforge.study.run import Outcome, run_trial
from tuneforge.study.store import claim
from tuneforge.study.sweeper import StudySweeper, settings_of

OURS = f"{StudySweeper.__module__}.{StudySweeper.__name__}"
HYDRAS = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
"""hydra/sweeper=basic."""


def sweep(overrides: Sequence[str], config_dirs: Sequence[Path]) -> int:
    """Run a sweep; returns its exit code.

    Not through `hydra.main`, which turns every error into a traceback and exit code 1.

    Raises:
        TuneforgeError: with what is wrong with it.
    """
    quiet_libraries()
    in_defaults = groups_in_defaults()
    with front(config_dirs) as loader:
        lines, _, problems = normalise(loader, overrides, in_defaults, sweeping=True)
        if problems:
            raise TuneforgeError.of(problems)
        plugins, hydra = Plugins.instance(), GlobalHydra.instance().hydra
        assert hydra is not None
        for ours, kind in ((StudySweeper, Sweeper), (ProcessLauncher, Launcher)):
            if ours not in plugins.discover(kind):
                plugins.register(ours)
        try:
            with _foreign_sweeper(loader, lines), execution_whitelist(["tuneforge.*"]):
                done = hydra.multirun(CONFIG_NAME, run_trial, lines, with_log_configuration=False)
        except (HydraException, OmegaConfBaseException) as error:
            raise TuneforgeError.of([from_hydra(error)]) from error
        except RecursionError as error:
            raise circular(lines) from error
        except Exception as error:
            full = disk_error(error, "the sweep")  # of study.db too, whose errors are SQLAlchemy's
            if full is None or isinstance(error, TuneforgeError):
                raise
            raise full from error
    return done if isinstance(done, int) else _code_of_jobs(done)


def _foreign_sweeper(loader: ConfigLoader, lines: list[str]) -> AbstractContextManager[object]:
    """The claim of the sweep's folder where the sweeper is Hydra's own, which writes there too.

    Raises:
        TuneforgeError: it is neither ours nor Hydra's, or its params set what a config may not.
    """
    with bounded_interpolations():
        config = loader.load_configuration(CONFIG_NAME, lines, RunMode.MULTIRUN)
        node = config.hydra
        if node.sweeper._target_ == OURS:
            settings_of(config)  # within bounds: Hydra resolves them without when it builds the sweeper
            return nullcontext()
        _check_params(loader, node.sweeper)
        folder = named_folder(node.sweep.dir, "hydra.sweep.dir")
    return claim(folder, named=True, output_root=folder, wanted="")


def _check_params(loader: ConfigLoader, sweeper: DictConfig) -> None:
    """Refuse params of a sweeper that go to the trials without our checks: Hydra applies them before we are asked."""
    if sweeper._target_ != HYDRAS:
        message = f"{sweeper._target_} is neither tuneforge's sweeper nor Hydra's own, and its trials are not checked"
        raise TuneforgeError.of(
            [Problem("hydra-key", message, "hydra/sweeper", fix="leave it out: the default is our own")]
        )
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    _, _, problems = normalise(loader, params, groups_in_defaults(), sweeping=True)
    if problems:
        raise TuneforgeError.of(problems)


def _code_of_jobs(batches: object) -> int:
    """The exit code of a sweep by another sweeper, such as Hydra's own (hydra/sweeper=basic)."""
    assert isinstance(batches, Sequence)
    outcomes = [job.return_value for batch in batches for job in batch]
    stopped = [o.code for o in outcomes if isinstance(o, Outcome) and o.state == "interrupted"]
    if stopped:
        return int(stopped[-1])
    return EXIT_OK if any(o.state == "complete" for o in outcomes) else EXIT_REFUSED
