"""Where the trials of a sweep run: a place takes trials while it has room, and says which have ended."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from tuneforge.errors import EXIT_BUG, EXIT_OK, TuneforgeError
from tuneforge.study.run import Outcome

Ended = Outcome | TuneforgeError
"""What came of a trial; an error is one that every trial would have."""


@runtime_checkable
class Slots(Protocol):
    """A place for trials."""

    stopped: int
    """Exit code of a signal that came while trials ran in other processes; 0 before."""

    def room(self) -> int:
        """How many more trials may be started now."""

    def start(self, number: int, job: Sequence[str]) -> None:
        """Start a trial, given its overrides in Hydra's grammar."""

    def ended(self) -> Mapping[int, Ended]:
        """Wait until any that was started has ended; all that have since the last call, by number."""

    def close(self) -> None:
        """End those that still run, with a checkpoint each."""


class Batches:
    """Any launcher of Hydra: it takes some trials, and returns when all of them have ended."""

    def __init__(self, launcher: Launcher, size: int) -> None:
        """Trials are handed to the launcher `size` at a time."""
        self._launcher = launcher
        self._size = size
        self.stopped = EXIT_OK
        self._batch: dict[int, Sequence[str]] = {}

    def room(self) -> int:
        """The rest of a batch."""
        return self._size - len(self._batch)

    def start(self, number: int, job: Sequence[str]) -> None:
        """Put it into the batch."""
        self._batch[number] = job

    def ended(self) -> Mapping[int, Ended]:
        """Have the batch run."""
        batch, self._batch = self._batch, {}
        returned = self._launcher.launch(list(batch.values()), initial_job_idx=min(batch))
        return {number: _of_job(job) for number, job in zip(batch, returned, strict=True)}

    def close(self) -> None:
        """Nothing runs between two calls."""


def _of_job(job: JobReturn) -> Ended:
    if job.status is JobStatus.COMPLETED:
        outcome = job.return_value
        assert isinstance(outcome, Outcome)
        return outcome
    error = job._return_value
    if isinstance(error, TuneforgeError):
        return error
    return Outcome("failed", reason=f"{type(error).__name__}: {error}", code=EXIT_BUG)
