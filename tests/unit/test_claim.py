"""One run at a time in a folder, and no trace of a run that wrote nothing."""

import os
import subprocess
import sys

import pytest

from tuneforge.artifacts.claim import NAME, Claim, HeldError

HOLD = """
import pathlib, sys, time
from tuneforge.artifacts.claim import Claim
held = Claim(pathlib.Path(sys.argv[1]))
print(1, flush=True)
time.sleep(60)
"""


def test_a_held_folder_is_refused_by_the_name_of_its_holder(tmp_path):
    with Claim(tmp_path / "run"):
        with pytest.raises(HeldError, match=f"process {os.getpid()} on "):
            Claim(tmp_path / "run")
        (tmp_path / "run" / "written").touch()
    with Claim(tmp_path / "run"):
        pass
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["written"]


def test_a_folder_that_nothing_was_written_to_goes_with_those_made_for_it(tmp_path):
    with Claim(tmp_path / "outputs" / "day" / "time", new=True):
        with pytest.raises(FileExistsError):
            Claim(tmp_path / "outputs" / "day" / "time", new=True)
        assert (tmp_path / "outputs" / "day" / "time" / NAME).is_file()
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_holds_nothing(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"1\n"
    with pytest.raises(HeldError, match=f"process {child.pid} on "):
        Claim(tmp_path)
    child.kill()
    child.wait()
    child.stdout.close()
    with Claim(tmp_path):
        assert f"process {os.getpid()}" in (tmp_path / NAME).read_text()


def test_a_child_that_inherits_it_holds_on(tmp_path):
    claim = Claim(tmp_path)
    child = subprocess.Popen(["sleep", "60"], pass_fds=[claim.descriptor])
    os.close(claim.descriptor)
    with pytest.raises(HeldError):
        Claim(tmp_path)
    child.kill()
    child.wait()
    Claim(tmp_path).release()
