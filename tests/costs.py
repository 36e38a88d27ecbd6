"""What tests cost: slow files first, so that all workers end together; the sum and the slowest at the end.

Time on a shared machine says little, so what is stored and shown is processor time, of a test and of its children.
`pytest --store-costs` writes down what this run's files cost (tests/costs.json).
"""

import gc
import json
import resource
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

STORE = Path(__file__).with_name("costs.json")
SHOWN = 10
COST = "processor seconds"


def file_of(nodeid: str) -> str:
    """The file of a test."""
    return nodeid.partition("::")[0]


def used() -> float:
    """Processor seconds of this process and of the children it has waited for."""
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(r.ru_utime + r.ru_stime for r in each)


class Costs:
    """The plugin."""

    def __init__(self, budget: float | None, since: float | None, store: bool) -> None:
        """`budget`: minutes that the whole may take, which began at `since` (seconds of the epoch; None: now)."""
        self.budget, self.store = budget, store
        self.started = since or time.time()
        self.file = ""
        self.cpu: Counter[str] = Counter()
        self.clock: Counter[str] = Counter()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Files by what they cost; the tests of a file stay together and in order."""
        stored = json.loads(STORE.read_text())
        items.sort(key=lambda item: -stored.get(file_of(item.nodeid), 0))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """From here on it is this test's."""
        self.before = used()
        file = file_of(item.nodeid)
        if file != self.file:
            # Imports and caches stay, and the collector would walk through them again and again.
            # Composing a config took 0.30 s instead of 0.17.
            self.file = file
            gc.collect()
            gc.freeze()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[Any]:
        """A report carries the cost of its phase from any worker to the process that counts."""
        report = yield
        now = used()
        report.user_properties = [*report.user_properties, (COST, now - self.before)]
        self.before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count."""
        self.cpu[report.nodeid] += dict(report.user_properties).get(COST, 0.0)
        self.clock[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say it, and write it down where that is asked for."""
        minutes = (time.time() - self.started) / 60
        limit = f" of {self.budget:g}" if self.budget else ""
        terminalreporter.section("cost", sep="-")
        terminalreporter.line(
            f"{minutes:.1f}{limit} minutes; the tests took {self.cpu.total() / 60:.1f} of the processor"
        )
        for name, seconds in self.clock.most_common(SHOWN):
            terminalreporter.line(f"{seconds:6.1f} s, {self.cpu[name]:6.1f} of the processor  {name}")
        if self.store:
            files: Counter[str] = Counter()
            for name, seconds in self.cpu.items():
                files[file_of(name)] += seconds
            kept = json.loads(STORE.read_text()) | {name: round(seconds, 1) for name, seconds in files.items()}
            STORE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
