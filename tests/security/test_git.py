"""git is asked for the commit of a run, and starts no program that a repository, PATH or the environment names."""

import os
import subprocess
from pathlib import Path

import pytest

from tuneforge import git_state
from tuneforge.git_state import find_git, git_commit

GIT = find_git()
pytestmark = pytest.mark.skipif(GIT is None, reason="git is not installed")


def git(*arguments: str) -> str:
    clean = {"PATH": os.defpath, "GIT_CONFIG_GLOBAL": os.devnull, "HOME": "/nonexistent"}
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run([GIT, *who, *arguments], env=clean, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(canary):
    """A repository in the working directory, with one commit of a file that every filter and diff is asked about."""
    git("init", "-q")
    Path("a.txt").write_text("one\n")
    Path(".gitattributes").write_text("* filter=evil diff=evil\n*.txt merge=evil\n")
    git("add", ".")
    git("commit", "-qm", "first")
    # The same size and another time: git must read the file to see whether it changed.
    Path("a.txt").write_text("two\n")
    return git("rev-parse", "HEAD")


@pytest.fixture
def evil(canary, tmp_path):
    """A program that leaves the canary's mark, whatever it is started for."""
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\necho x > {canary.mark}\nexit 1\n")
    program.chmod(0o755)
    return str(program)


SETTINGS = {
    "fsmonitor": ["core.fsmonitor"],
    "clean filter": ["filter.evil.clean"],
    "filter process": ["filter.evil.process"],
    "filter with another name": ["filter.a=b.c.clean"],
    "text converter": ["diff.evil.textconv", "diff.evil.command"],
    "external diff": ["diff.external"],
    "ssh command": ["core.sshCommand"],
    "pager": ["core.pager", "pager.status", "pager.config"],
    "askpass and helper": ["core.askPass", "credential.helper"],
    "alternate refs": ["core.alternateRefsCommand"],
    "gpg": ["gpg.program"],
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_program_of_the_repository_is_started(repository, evil, kind):
    for key in SETTINGS[kind]:
        git("config", key, evil)
    if kind == "filter with another name":
        Path(".gitattributes").write_text("* filter=a=b.c\n")
    if kind == "ssh command":
        git("remote", "add", "origin", "ssh://nowhere.invalid/x")
        git("config", "remote.origin.promisor", "true")
        git("config", "extensions.partialClone", "origin")
    assert git_commit() == f"{repository}+"


def test_no_hook_is_run(repository, evil):
    for name in ("post-index-change", "reference-transaction", "pre-commit", "fsmonitor-watchman", "post-checkout"):
        os.symlink(evil, Path(".git/hooks") / name)
    git("config", "core.hooksPath", ".git/hooks")
    assert git_commit() == f"{repository}+"


@pytest.mark.parametrize("name", ["GIT_EXTERNAL_DIFF", "GIT_SSH_COMMAND", "GIT_PAGER", "GIT_ASKPASS", "GIT_EDITOR"])
def test_no_program_of_the_environment_is_started(repository, evil, monkeypatch, canary, name):
    monkeypatch.setenv(name, evil)
    canary.before = canary.state()
    assert git_commit() == f"{repository}+"


def test_no_setting_of_the_environment_is_read(repository, evil, monkeypatch, canary, tmp_path):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.fsmonitor")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", evil)
    monkeypatch.setenv("GIT_CONFIG_PARAMETERS", f"'core.fsmonitor={evil}'")
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f"[core]\n\tfsmonitor = {evil}\n")
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    canary.before = canary.state()
    assert git_commit() == f"{repository}+"


@pytest.mark.parametrize("where", [".", "bin", ""])
def test_no_git_of_the_working_directory_is_started(repository, evil, monkeypatch, canary, where):
    folder = Path(where)
    folder.mkdir(exist_ok=True)
    os.symlink(evil, folder / "git")
    path = where if where in (".", "") else str(folder.resolve())
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
    canary.before = canary.state()
    assert git_commit() == f"{repository}+"
    monkeypatch.setattr(git_state, "USUAL", ())
    monkeypatch.setenv("PATH", f"{path}{os.pathsep}{folder.resolve()}")
    canary.before = canary.state()
    assert git_commit() is None


def test_git_that_does_not_answer_is_given_up(canary, tmp_path, monkeypatch):
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (slow / "git").chmod(0o755)
    monkeypatch.setattr(git_state, "USUAL", (str(slow),))
    monkeypatch.setattr(git_state, "SECONDS", 0.2)
    assert git_commit() is None


def test_what_is_recorded(repository, tmp_path, monkeypatch):
    assert git_commit() == f"{repository}+"
    Path("a.txt").write_text("one\n")
    assert git_commit() == repository
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    assert git_commit() is None
    monkeypatch.chdir(here)
