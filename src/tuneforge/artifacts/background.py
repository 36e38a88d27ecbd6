"""Jobs done one after the other, off the calling thread or on it, whose failure is never lost."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait


class Background:
    """One thread. After a failure, jobs behind it are dropped, and the next `check` or `wait` raises it."""

    def __init__(self, asynchronous: bool) -> None:
        """Not asynchronous: a job is done by the caller at once, and its failure is kept in the same way."""
        self.asynchronous = asynchronous
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[Future[None]] = []
        self._error: Exception | None = None

    def do(self, job: Callable[[], None]) -> None:
        """Do a job after those before it."""
        if not self.asynchronous:
            self._run(job)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending.append(self._pool.submit(self._run, job))

    def check(self) -> None:
        """Raise what has failed so far, once."""
        if self._error is not None:
            self.wait()

    def wait(self) -> None:
        """Return when every job is done; raise what failed, once."""
        wait(self._pending)
        self._pending.clear()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        if self._error is not None:
            return
        try:
            job()
        except Exception as error:  # whatever it is: `check` raises it where it is heard
            self._error = error
