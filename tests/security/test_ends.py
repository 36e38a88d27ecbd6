"""A closed pipe ends no run, and a full disk is what its user hears of; the run's folder says how it ended."""

import io
import json
import os
import sys

import pytest

from helpers import SHORT
from tuneforge.artifacts import folder as writing
from tuneforge.artifacts.folder import RESERVE
from tuneforge.cli import run
from tuneforge.console import say, unbroken_output, warn
from tuneforge.errors import Problem, disk_error, print_problems

ONE_STEP = (*SHORT, "trainer.max_steps=1", "samples.num=0", "trainer.val_check_interval=1")


@pytest.fixture
def nobody_reads(monkeypatch):
    """stdout and stderr are pipes whose reader has gone."""
    streams = []
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        streams.append(os.fdopen(writer, "w"))
        monkeypatch.setattr(sys, name, streams[-1])
    yield
    monkeypatch.undo()
    for stream in streams:
        stream.close()  # what is buffered goes to /dev/null by now


def test_nothing_that_prints_fails_when_nobody_reads(nobody_reads):
    with unbroken_output():
        for _ in range(3):
            say("x" * 10_000)
            warn("y" * 10_000)
            print_problems([Problem("code", "z" * 10_000)])
            sys.stdout.write("w" * 10_000)
            sys.stdout.writelines(["a\n", "b\n"])
            sys.stdout.flush()
            os.write(sys.stdout.fileno(), b"a child's")
    assert sys.stdout.writable()


def test_a_stream_that_was_never_open_is_none_too(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with unbroken_output():
        say("x")
        print_problems([Problem("code", "message")])
    assert sys.stdout is None


def test_a_run_goes_to_its_end_when_nobody_reads(nobody_reads, tmp_path):
    """`tuneforge ... | head -1`, with the progress lines, warnings and errors of a whole run."""
    code = run([*ONE_STEP, f"hydra.run.dir={tmp_path / 'run'}", f"output_root={tmp_path}"])
    assert code == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["exit"]) == ("done", 0)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(122, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
)
def test_a_full_disk_has_one_code_whoever_notices_it(error):
    assert disk_error(error).problems[0].code == "disk-full"
    assert disk_error(ValueError("another")) is None


class Disk:
    """A disk that is full from its nth file on, until the reserve of the run is given back or it is freed."""

    def __init__(self, monkeypatch, root, full_from):
        self.root, self.full_from, self.files, self.had_reserve = root, full_from, 0, False
        self.write = writing._write_all
        monkeypatch.setattr(writing, "_write_all", self)

    def __call__(self, descriptor, content, *, sync=True):
        self.files += 1
        held = (self.root / RESERVE).exists()
        self.had_reserve |= held
        if self.files >= self.full_from and (held or not self.had_reserve):
            os.close(descriptor)
            raise OSError(28, "No space left on device")
        self.write(descriptor, content, sync=sync)


@pytest.mark.parametrize("full_from", [1, 6, 7])
def test_a_full_disk_ends_a_run_in_one_error_and_a_true_record(command, monkeypatch, tmp_path, full_from):
    """1: the marker, before anything; 6: the record, after metrics, config, provenance and reserve; 7: in training."""
    where = tmp_path / "run"
    with monkeypatch.context() as patch:
        Disk(patch, where, full_from)
        ran = command(*ONE_STEP, folder=where)
    assert ran.code == 2, ran.err
    assert ran.err.startswith("error: output_root: no space left on the device that holds ")
    assert "Traceback" not in ran.err
    left = {p.name for p in where.iterdir()} if where.is_dir() else set()
    assert not {n for n in left if n.endswith(".tmp")} | {RESERVE} & left
    assert ("run.json" in left) == (full_from == 7)
    if full_from < 7:
        return
    assert (ran.record["status"], ran.record["exit"]) == ("failed", 2)
    again = command(*ONE_STEP, f"resume={where}", folder=where)
    assert again.code == 0, again.err
    assert again.record["status"] == "done"
    assert not (where / RESERVE).exists()


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "cp1252"])
def test_a_character_that_the_console_lacks_is_escaped(monkeypatch, encoding):
    """A file name of bytes that are no UTF-8, or a terminal of another encoding."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    with unbroken_output():
        sys.stdout.write("a\udcff\u4f60")
    assert written.getvalue().startswith(b"a\\udcff")
