"""Reports a trial's evaluations to its study, and ends the run where the study's pruner has seen enough."""

import functools
import math
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from tuneforge.callbacks.checkpoints import measured
from tuneforge.console import say
from tuneforge.trial import Trial, storage_url
from tuneforge.world import is_main_process

if TYPE_CHECKING:
    import optuna


class TrialReports(pl.Callback):
    """There is one in the runs of a sweep, and in no others."""

    def __init__(self, trial: Trial, eval_every: int) -> None:
        """`eval_every`: optimizer steps between two evaluations. What is reported is counted in evaluations, because
        runs with other batches have other steps.
        """
        self.trial = trial
        self.eval_every = eval_every
        self.pruned_at: int | None = None
        """The optimizer step at which the pruner ended the run."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report where the evaluation was part of training; all processes stop, or none."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        value = measured(trainer, self.trial.objective, "hydra.sweeper")
        number = math.ceil(trainer.global_step / self.eval_every)
        prune = is_main_process() and self._report(value, number)
        # There is nothing left to save of a run at its last step.
        if trainer.strategy.broadcast(prune) and trainer.global_step < trainer.max_steps:
            self.pruned_at = trainer.global_step
            trainer.should_stop = True
            say(
                f"pruned at step {trainer.global_step} of {trainer.max_steps}: {self.trial.objective} {value:.4f} is "
                "worse than what other trials had at this evaluation"
            )

    def _report(self, value: float, number: int) -> bool:
        """Whether the trial is to end. What a resumed run reports again is kept as it was."""
        import optuna

        frozen = next(t for t in self._study.get_trials(deepcopy=False) if t.number == self.trial.number)
        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        if number not in frozen.intermediate_values:
            trial.report(value, number)
        return trial.should_prune()

    @functools.cached_property
    def _study(self) -> "optuna.Study":
        import optuna

        from tuneforge.samplers import make_pruner

        return optuna.load_study(
            study_name=self.trial.study,
            storage=storage_url(self.trial.storage),
            sampler=optuna.samplers.RandomSampler(),
            pruner=make_pruner(self.trial.pruner),
        )
