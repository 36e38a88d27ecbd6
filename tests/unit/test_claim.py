"""One run at a time in a folder, and no trace of a run that wrote nothing."""

import os
import subprocess
import sys

import pytest

from tuneforge.artifacts.claim import NAME, Claim, ForeignError, HeldError
from tuneforge.artifacts.folder import MARK

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
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [MARK, "written"]


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


def test_the_marker_is_the_first_file_and_a_folder_without_it_is_left_alone(tmp_path, monkeypatch):
    import tuneforge.artifacts.claim as module

    seen = []
    monkeypatch.setattr(module, "_locked", lambda root: seen.extend(p.name for p in root.iterdir()) or os.dup(0))
    Claim(tmp_path / "new")
    assert seen == [MARK]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for root, said in (
        (foreign, "holds files that no run wrote: thesis.tex"),
        (foreign / "thesis.tex", "is a file"),
        (tmp_path / "link", "is a link to "),
        (tmp_path / "dangling", "is a link to "),
    ):
        with pytest.raises(ForeignError, match=said):
            Claim(root)
    assert [p.name for p in foreign.iterdir()] == ["thesis.tex"]
    assert not (tmp_path / "nowhere").exists()
