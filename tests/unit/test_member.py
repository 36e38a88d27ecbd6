"""A process of several that fails before training ends the run at once, and says which it was."""

import json
import threading
from datetime import timedelta
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore

from tuneforge import member
from tuneforge.errors import LostError
from tuneforge.exchange import Exchange
from tuneforge.world import AGENT_STORE, World


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


@pytest.mark.parametrize("kind", [ImportError, SystemExit, KeyboardInterrupt])
def test_a_failure_outside_of_our_errors_is_the_report_that_the_first_process_waits_for(monkeypatch, kind):
    def unpack(packed):
        raise kind("libcudart.so is missing")

    monkeypatch.setattr(member, "unpack", unpack)
    exchange = _Exchange(rank=1)
    with pytest.raises(kind):
        member._join(exchange, None)
    report = exchange.given["report"]
    sound = {"host": "a", "problems": [], "sees the folder": True, "folder": "f", "same": {}}
    with pytest.raises(LostError, match=rf"process 1 of 2 .*{kind.__name__}: libcudart.so is missing"):
        member._compare([sound, report])


@pytest.fixture
def meet(monkeypatch):
    """Makes the exchange of a process of two, at a port of the test."""
    port = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False).port
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.delenv(AGENT_STORE, raising=False)
    return lambda rank: Exchange(World(rank, 2, rank, 2, "127.0.0.1", port))


def test_a_process_that_never_comes_is_not_waited_for_as_one_that_works(meet, monkeypatch):
    monkeypatch.setattr("tuneforge.exchange.MEETING", timedelta(seconds=0.2))
    with pytest.raises(LostError, match="'here/1'"):
        meet(0).to_first("report", {})


def test_a_process_ends_when_another_fails_and_it_does_not_notice(meet, monkeypatch, tmp_path):
    """It waits in a call of torch, for a process group that will never be whole."""
    ended, codes = threading.Event(), []
    monkeypatch.setattr(member, "LOOK", 0.01)
    monkeypatch.setattr(member, "GRACE", 0.01)
    monkeypatch.setattr(member.os, "_exit", lambda code: (codes.append(code), ended.set()))
    place = SimpleNamespace(folder=SimpleNamespace(record=tmp_path / "run.json"))
    place.folder.record.write_text(json.dumps({"status": "running", "exit": None}))
    first, second = meet(0), meet(1)
    with member._watching(first, place), member._watching(second, place):
        assert not ended.wait(0.1)
        assert member._failed(second, RuntimeError("an accident")) == 1
        assert ended.wait(10)
    assert codes == [1]
    assert json.loads(place.folder.record.read_text()) == {"status": "failed", "exit": 1}
