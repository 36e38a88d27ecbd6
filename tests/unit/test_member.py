"""A process of several that fails before training ends the run at once, and says which it was."""

from types import SimpleNamespace

import pytest

from tuneforge import member
from tuneforge.errors import LostError


class _Exchange:
    """What this process hands the others."""

    def __init__(self, rank: int) -> None:
        self.world = SimpleNamespace(rank=rank, size=2)
        self.given = {}

    def from_first(self, name, value=None):
        return {"config": {}, "place": {}}[name]

    def to_first(self, name, value):
        self.given[name] = value
        return []


def test_a_failure_outside_of_our_errors_is_the_report_that_the_first_process_waits_for(monkeypatch):
    def unpack(packed):
        raise ImportError("libcudart.so is missing")

    monkeypatch.setattr(member, "unpack", unpack)
    exchange = _Exchange(rank=1)
    with pytest.raises(ImportError):
        member._join(exchange, None)
    report = exchange.given["report"]
    sound = {"host": "a", "problems": [], "sees the folder": True, "folder": "f", "same": {}}
    with pytest.raises(LostError, match=r"process 1 of 2 .*ImportError: libcudart.so is missing"):
        member._compare([sound, report])
