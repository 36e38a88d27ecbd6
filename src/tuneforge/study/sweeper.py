"""Hydra's sweeper over a study of Optuna: asks, has the launcher run, tells, and can be started again at any moment.

Upstream's (hydra-optuna-sweeper) knows two ends of a trial and counts anew at each start. Of it are the search spaces
of the command line; asking and telling are here: pruned trials, reasons of failed ones, and what a killed sweep left.
"""

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from tuneforge.artifacts import owned
from tuneforge.compose import compose, named_folder, secret_in_path, structure
from tuneforge.config_bounds import bounded_interpolations
from tuneforge.console import say, warn
from tuneforge.errors import EXIT_OK, EXIT_REFUSED, Problem, TuneforgeError
from tuneforge.front import CONFIG_DIR, groups_in_defaults
from tuneforge.interpolation import leaves
from tuneforge.masking import mask
from tuneforge.option_targets import EXTENSION
from tuneforge.overrides import normalise
from tuneforge.samplers import is_grid, make_pruner, make_sampler
from tuneforge.schema.check import check
from tuneforge.schema.signature import NodeType
from tuneforge.schema.sweep import Sweep
from tuneforge.shell import command, setting
from tuneforge.study.answer import Answer
from tuneforge.study.checks import Extend, check_configs, check_search
from tuneforge.study.run import PLACE, Outcome
from tuneforge.study.slots import Batches, Ended, Slots
from tuneforge.study.space import Space, override, refuse_secrets
from tuneforge.study.store import FILE, Kept, check_database, claim, identity, local_storage, open_study
from tuneforge.study.stored import read_trials
from tuneforge.targets import instead_of, load, why_untrusted
from tuneforge.trial import Trial

SHARED = "shared"
"""Folder of what trials make once, in that of the sweep; gone when the sweep is done."""
SHARED_FILES = r"\.?(rows|base)-[0-9a-f]{32}(\.[0-9a-f]{16})?\.(npz|json)"
"""Names of the files in it (tuneforge.shared); other files there are not ours."""
NUM_TRIALS = 20
"""Of a sweep that does not say, where it is no grid: hydra-optuna-sweeper's default."""


@dataclass(frozen=True)
class _Asked:
    """A trial that is to run."""

    trial: optuna.trial.Trial
    point: list[str]
    """Its own overrides."""


class StudySweeper(Sweeper):
    """The sweeper of conf/hydra/sweeper/optuna.yaml."""

    def __init__(self, **settings: Any) -> None:
        """`settings`: the keys of `tuneforge.schema.sweep.Sweep`; `setup` reads them from the whole config."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's first call."""
        self.loader = hydra_context.config_loader
        self.whole = config
        """The config without what is swept."""
        self.settings = settings_of(config)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        self.slots: Slots = launcher if isinstance(launcher, Slots) else Batches(launcher, self.settings.n_jobs)

    def sweep(self, arguments: list[str]) -> int:
        """Run the sweep that these overrides describe; returns its exit code.

        Raises:
            TuneforgeError: before the first trial, with what is wrong; after it, where no trial can be.
        """
        settings = self.settings
        sources = self.whole.hydra.runtime.config_sources
        config_dirs = [Path(s.path) for s in sources if s.provider == CONFIG_DIR]
        self.space = Space.read(_params(settings, arguments, config_dirs), arguments)
        refuse_secrets(self.space.swept)
        typed = {o.partition("=")[0].lstrip("+") for o in (*self.space.fixed, *self.space.swept)}
        self.cheap = [setting(k, v) for k, v in leaves(settings.trial).items() if k not in typed]
        self.extend = _extension(settings.custom_search_space)
        shared = [*self.cheap, *self.space.fixed]
        base = check_configs(settings, self.space, shared, config_dirs, extend=self.extend, config=self.whole)
        check_search(settings, self.space, base.config.seed)
        self.seed = base.config.seed
        wanted = identity(base.tree, settings, self.space, self.cheap)
        named = any(o.startswith("hydra.sweep.dir=") for o in self.whole.hydra.overrides.hydra)
        output_root = Path(base.config.output_root)
        folder = named_folder(self.whole.hydra.sweep.dir, "hydra.sweep.dir")
        if problems := list(secret_in_path(folder, "hydra.sweep.dir")):
            raise TuneforgeError.of(problems)
        with claim(
            folder,
            named=named,
            output_root=output_root,
            wanted=wanted,
        ) as held:
            self.root = held.root
            return self._run(wanted, [str(d) for d in config_dirs])

    def _run(self, wanted: str, config_dirs: list[str]) -> int:
        settings = self.settings
        with read_write(self.whole.hydra.sweep):
            self.whole.hydra.sweep.dir = str(self.root)
        self.storage = settings.storage or local_storage(self.root)
        chosen = self.whole.hydra.runtime.choices.get("sweep") or "sweep"
        if not settings.storage and (self.root / FILE).is_file():  # it goes on
            check_database(self.root, Kept.read(self.root).study)
        self.study = open_study(self.storage, settings.study_name or f"{chosen}-{wanted[:8]}", settings.directions)
        read_trials(self.study, settings.directions, self.storage)
        self.study.pruner = make_pruner(settings.pruner)
        kept = Kept(
            wanted,
            self.study.study_name,
            settings.storage or "",
            settings.objectives,
            settings.directions,
            list(self.space.fixed),
            self.cheap,
            config_dirs,
        )
        kept.write(self.root, "running")
        try:
            code = self._all_trials()
        except KeyboardInterrupt:
            kept.write(self.root, "interrupted")
            say(f"stopped; go on with the same command, or read what there is: {command('report', str(self.root))}")
            raise
        except TuneforgeError:
            kept.write(self.root, "failed")
            raise
        finally:
            self.slots.close()
        kept.write(self.root, "interrupted" if code else "done")
        if not code:
            owned.remove_named(self.root / SHARED, SHARED_FILES)
        Answer.of(self.root, self.study, kept).tell()
        if code:
            say(f"stopped; go on with the same command: {self.root}")
            return code
        return EXIT_OK if self._count(TrialState.COMPLETE) else EXIT_REFUSED

    # ---- the loop

    def _all_trials(self) -> int:
        """Trials until there are enough; 0, or the exit code of the signal that stopped one."""
        settings = self.settings
        self.grid = is_grid(settings.sampler, listed=not self.space.continuous)
        self.total = settings.n_trials or (int(self.space.size) if self.grid else NUM_TRIALS)
        if self.grid:
            self.total = min(self.total, int(self.space.size))
            for point in list(self.space.grid())[: self.total]:
                self.study.enqueue_trial(point, skip_if_exists=True)
        self.left = self._left_by_a_kill()
        self.running: dict[int, _Asked] = {}
        before = self._finished()
        done = f"{before} of {self.total} trials are done" if before else f"{self.total} trials"
        say(f"sweep {self.root}: {done}")
        until = math.inf if settings.timeout is None else time.monotonic() + settings.timeout
        stopped = EXIT_OK
        over = False
        while True:
            over = over or self._is_over(until)
            for _ in range(0 if over or stopped else min(self.slots.room(), self._to_ask())):
                asked = self._ask(self.left.pop(0) if self.left else None)
                self.running[asked.trial.number] = asked
                self.slots.start(asked.trial.number, self._job(asked))
            if not self.running:
                return stopped
            for number, ended in self.slots.ended().items():
                stopped = self._take(self.running.pop(number), ended) or stopped
            stopped = stopped or self.slots.stopped

    def _to_ask(self) -> int:
        """How many trials are still to be started."""
        if self.grid and not self.left:
            return self._count(TrialState.WAITING)
        # Of a database that other machines use: what they run now is not asked for again.
        return self.total - self._finished() - self._count(TrialState.RUNNING) + len(self.left)

    def _is_over(self, until: float) -> bool:
        """Whether no further trial may start, which is told."""
        to_ask = self._to_ask()
        if to_ask > 0 and time.monotonic() > until:
            say(f"hydra.sweeper.timeout={self.settings.timeout:g} is over: {to_ask} trials are left out")
            return True
        failed = self._count(TrialState.FAIL)
        if to_ask > 0 and failed > self.settings.max_failure_rate * self.total:
            message = f"{failed} of {self.total} trials failed, and the sweep is given up"
            warn(Problem("too-many-failed", message, "hydra.sweeper.max_failure_rate"))
            return True
        return False

    def _take(self, asked: _Asked, ended: Ended) -> int:
        """Tell the study what came of a trial; the exit code of a signal that stopped it, else 0.

        Raises:
            TuneforgeError: every trial would fail as this one.
        """
        if isinstance(ended, TuneforgeError):
            asked.trial.set_user_attr("reason", mask(str(ended), pairs=False))
            self.study.tell(asked.trial.number, state=TrialState.FAIL)
            raise ended
        if ended.state == "interrupted":
            return ended.code
        self._tell(asked, ended)
        return EXIT_OK

    def _ask(self, left: FrozenTrial | None) -> _Asked:
        """The next trial: one that a killed sweep left, else a new one.

        The sampler is made anew, seeded by how many trials there are: a sweep that goes on draws what it would have
        drawn had it not been stopped.
        """
        if left is not None:
            trial = optuna.trial.Trial(self.study, left._trial_id)
        else:
            if not self.grid:
                self.study.sampler = make_sampler(self.settings.sampler, self.seed + len(self.study.get_trials(False)))
            trial = self.study.ask()
        trial.set_user_attr("sweep", str(self.root.resolve()))
        for key, distribution in self.space.swept.items():
            _suggest(trial, key, distribution)
        if self.extend is not None:
            self.extend(self.whole, trial)
        point = [override(key, value) for key, value in trial.params.items()]
        trial.set_user_attr("folder", str(self.root / str(trial.number)))
        trial.set_user_attr("overrides", point)
        return _Asked(trial, point)

    def _job(self, asked: _Asked) -> list[str]:
        """A trial's overrides as Hydra's launchers take them."""
        typed = [*self.cheap, *self.space.fixed, *asked.point]
        lines, _, problems = normalise(self.loader, typed, groups_in_defaults())
        if problems:
            raise TuneforgeError.of(problems)
        settings = self.settings
        reported = settings.objectives[0] if len(settings.objectives) == 1 else ""
        shared = str((self.root / SHARED).resolve())
        trial = Trial(self.storage, self.study.study_name, asked.trial.number, reported, settings.pruner, shared)
        place = {
            "hydra.sweep.dir": str(self.root),
            "hydra.sweep.subdir": str(asked.trial.number),
            f"++hydra.job.env_set.{PLACE}": json.dumps(asdict(trial)),
        }
        return [*lines, *(setting(key, value) for key, value in place.items())]

    def _tell(self, asked: _Asked, outcome: Outcome) -> None:
        trial = asked.trial
        trial.set_user_attr("steps", outcome.steps)
        if outcome.reason:
            trial.set_user_attr("reason", mask(outcome.reason, pairs=False))
        if outcome.state == "complete":
            self.study.tell(trial.number, list(outcome.values))
        else:
            state = TrialState.PRUNED if outcome.state == "pruned" else TrialState.FAIL
            self.study.tell(trial.number, state=state)
        came = ", ".join(f"{n} {v:.4f}" for n, v in zip(self.settings.objectives, outcome.values, strict=False))
        came = came or outcome.state + (f": {outcome.reason}" if outcome.reason else "")
        say(f"trial {trial.number} ({self._finished()} of {self.total}): {came}   {' '.join(asked.point)}")

    def _left_by_a_kill(self) -> list[FrozenTrial]:
        """Trials of this folder that are said to run. Who holds the folder knows that they do not."""
        ours = str(self.root.resolve())
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        private = self.settings.storage is None
        return [t for t in running if t.user_attrs.get("sweep", ours if private else "") == ours]

    def _finished(self) -> int:
        return self._count(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

    def _count(self, *states: TrialState) -> int:
        return len(self.study.get_trials(deepcopy=False, states=states))


def settings_of(config: DictConfig) -> Sweep:
    """`hydra.sweeper`, checked.

    Raises:
        TuneforgeError: with every key and value that it cannot have.
    """
    # Params may refer to the config of a run, which Hydra's is not yet: our defaults are not in it.
    raw: Any = OmegaConf.to_container(config.hydra.sweeper)
    node = config.hydra.sweeper.copy()
    node._set_parent(config.hydra)
    with read_write(node), open_dict(node):
        # Nor is a password that is in the environment to be in any file.
        node.params, node.storage = {}, None
    with bounded_interpolations():
        tree: Any = OmegaConf.to_container(node, resolve=True)
    tree |= {"params": raw["params"], "storage": raw.get("storage")}
    del tree["_target_"]
    checked = check(tree, schema=NodeType("tuneforge.schema.sweep.Sweep"))
    if checked.problems:
        raise TuneforgeError.of(dataclasses.replace(p, path=f"hydra.sweeper.{p.path}") for p in checked.problems)
    return structure(Sweep, checked.tree)


def _params(settings: Sweep, arguments: Sequence[str], config_dirs: Sequence[Path]) -> dict[str, Any]:
    """Key -> its values, `${...}` being what the config has that all trials start from."""
    params = leaves(settings.params)
    if not any("${" in str(value) for value in params.values()):
        return params
    tree = compose(Space.read({}, arguments).fixed, config_dirs).tree
    with bounded_interpolations():
        found = OmegaConf.to_container(OmegaConf.create({**tree, "params": params}).params, resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _extension(target: str | None) -> Extend | None:
    if target is None:
        return None
    path = "hydra.sweeper.custom_search_space"
    refusal = why_untrusted(EXTENSION, target)
    if refusal:
        raise TuneforgeError("untrusted-target", refusal, path=path, fix=instead_of(EXTENSION, target))
    return load(EXTENSION, target)


def _suggest(trial: optuna.trial.Trial, key: str, distribution: BaseDistribution) -> None:
    """Give a trial its value of a key; one that it has already is kept."""
    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    else:
        assert isinstance(distribution, FloatDistribution)
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
