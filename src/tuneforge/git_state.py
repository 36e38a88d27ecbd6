"""The commit that a run was started at, asked of git without running anything that the repository's files name.

A repository's config can name programs for git to start: a file monitor, hooks, filters, an ssh command. A run only
wants two facts, so that none of them is needed.
"""

import os
import stat
import subprocess
from pathlib import Path

USUAL = ("/usr/bin", "/usr/local/bin", "/bin", "/opt/homebrew/bin", "/opt/local/bin", "/run/current-system/sw/bin")
"""Where systems install git; looked at before PATH, which may start with a folder of the project's."""
SECONDS = 10.0
"""After which git is given up: the record says less, and the run starts."""

# Each names a program, or makes git ask another machine. Given through the environment, where a name may hold any
# character; these settings win over the repository's.
_OFF = {
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.attributesFile": os.devnull,
    "core.sshCommand": "false",
    "core.askPass": "",
    "core.pager": "cat",
    "core.editor": "false",
    "core.untrackedCache": "false",
    "credential.helper": "",
    "diff.external": "",
    "protocol.allow": "never",
    "submodule.recurse": "false",
}
_FILTERS = ("clean", "smudge", "process")


def git_commit() -> str | None:
    """The commit of the working directory: with `+` when it has changes, with `?` when git did not answer in time.

    None outside of a repository, in one that git does not trust (its `safe.directory`), and without git.
    """
    program = find_git()
    if program is None:
        return None
    try:
        head = _ask(program, _OFF, "rev-parse", "--verify", "HEAD")
        if head is None:
            return None
        settings = _OFF | _no_filters(_ask(program, _OFF, "config", "--null", "--name-only", "--list") or "")
        changes = _ask(program, settings, "status", "--porcelain", "--ignore-submodules=all")
    except subprocess.TimeoutExpired:
        return None
    return head.strip() + ("?" if changes is None else "+" if changes.strip() else "")


def find_git() -> str | None:
    """The absolute path of git: of a system's folders, else of PATH without those that others could have filled."""
    here = Path.cwd().resolve()
    typed = [Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p]
    for folder in [Path(p) for p in USUAL] + [p for p in typed if p.is_absolute() and _is_safe(p.resolve(), here)]:
        program = folder / "git"
        if program.is_file() and os.access(program, os.X_OK):
            return str(program)
    return None


def _is_safe(folder: Path, here: Path) -> bool:
    """Whether a folder of PATH is no part of the project, and one that not everyone may write to."""
    if folder == here or folder.is_relative_to(here) or not folder.is_dir():
        return False
    return not folder.stat().st_mode & stat.S_IWOTH


def _no_filters(names: str) -> dict[str, str]:
    """Settings that empty each filter of the repository's config: without one, contents are compared as they are."""
    filters = {n.rpartition(".")[0] for n in names.split("\0") if n.startswith("filter.") and n.count(".") > 1}
    empty = {f"{name}.{kind}": "" for name in sorted(filters) for kind in _FILTERS}
    return empty | {f"{name}.required": "false" for name in sorted(filters)}


def _ask(program: str, settings: dict[str, str], *arguments: str) -> str | None:
    """What git answers; None where it fails.

    Raises:
        subprocess.TimeoutExpired: it does not answer.
    """
    given = {"GIT_CONFIG_COUNT": str(len(settings))}
    for number, (key, value) in enumerate(settings.items()):
        given |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    environment = {
        "PATH": os.defpath,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_LAZY_FETCH": "1",
        **given,
    }
    ran = subprocess.run(
        [program, "--no-pager", "--no-optional-locks", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    return ran.stdout.decode("utf-8", "replace") if ran.returncode == 0 else None
