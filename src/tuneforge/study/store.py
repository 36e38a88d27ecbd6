"""Where a sweep is kept: its folder, with what it searches and how far it is, and the study in a database."""

import datetime
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tuneforge.artifacts.claim import Claim, HeldError
from tuneforge.artifacts.folder import read_json, write_json
from tuneforge.console import say
from tuneforge.errors import TuneforgeError
from tuneforge.schema.sweep import Direction, Sweep
from tuneforge.study.space import Space

FILE = "sweep.json"
"""In the sweep's folder: what it is and how far it is."""

_MAY_CHANGE = ("n_trials", "n_jobs", "timeout", "max_failure_rate", "storage", "study_name")
"""Settings that a sweep may go on with others of."""


@dataclass
class Kept:
    """sweep.json."""

    identity: str
    """Hash of what is searched, and how."""
    study: str
    storage: str
    """The database's URL without its password; "" for study.db in the folder."""
    objectives: list[str]
    directions: list[Direction]
    fixed: list[str]
    """Overrides as typed that all trials share."""
    trial: list[str]
    """Overrides of the trials alone."""
    config_dirs: list[str]
    status: str = "running"
    """running, done, interrupted or failed; a killed sweep stays running."""
    pid: int = 0

    def write(self, root: Path, status: str) -> None:
        """Keep it in the folder."""
        self.status, self.pid = status, os.getpid()
        written = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        write_json(root / FILE, {**asdict(self), "written": written})

    @classmethod
    def read(cls, root: Path) -> "Kept":
        """Of a sweep's folder.

        Raises:
            TuneforgeError: there is none.
        """
        try:
            facts = read_json(root / FILE)
            del facts["written"]
            return cls(**facts)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise TuneforgeError(
                "not-a-sweep",
                f"{root} has no {FILE} that can be read, so it is not the folder of a sweep",
                fix="give the folder that --multirun wrote, under outputs/sweeps/",
            ) from error

    def url(self, root: Path) -> str:
        """Of the study, for reading it again; a password that was left out must be given anew."""
        return self.storage or local_storage(root)


def identity(tree: Mapping[str, Any], settings: Sweep, space: Space, trial: Sequence[str]) -> str:
    """Hash of what a sweep searches: the config, less where it is written, the space, and how."""
    kept = {k: v for k, v in asdict(settings).items() if k not in _MAY_CHANGE}
    config = {k: v for k, v in tree.items() if k not in ("output_root", "resume")}
    swept = {key: repr(distribution) for key, distribution in space.swept.items()}
    text = json.dumps([config, kept, swept, space.fixed, list(trial)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def claim(folder: Path, *, named: bool, output_root: Path, wanted: str) -> Claim:
    """Hold the folder that the sweep goes to: that of the newest unfinished one that searches the same, or `folder`.

    `named`: the user has said which folder.

    Raises:
        TuneforgeError: another sweep is in the folder that was named, or another process.
    """
    for root in [] if named else _unfinished(output_root, wanted):
        try:
            held = Claim(root)
        except HeldError as error:
            say(f"{error}, and is left to it")
            continue
        say(f"going on with {root}: a sweep of the same command that has not ended (hydra.sweep.dir=DIR starts afresh)")
        return held
    try:
        held = Claim(folder)
    except HeldError as error:
        fix = "wait for it, end it, or name another folder"
        raise TuneforgeError("sweep-in-use", str(error), path="hydra.sweep.dir", fix=fix) from error
    except OSError as error:
        message = f"{error.filename}: {error.strerror}"
        fix = "choose a folder that you may write to"
        raise TuneforgeError("not-writable", message, path="hydra.sweep.dir", fix=fix) from error
    if (folder / FILE).is_file() and Kept.read(folder).identity != wanted:
        held.release()
        raise TuneforgeError(
            "other-sweep",
            f"{folder} holds a sweep over another space or config, and nothing is overwritten",
            path="hydra.sweep.dir",
            fix="give the same command to go on with it, or name another folder",
        )
    return held


def _unfinished(output_root: Path, wanted: str) -> list[Path]:
    """Folders of sweeps with this identity that have not ended, newest first."""
    found = []
    for file in output_root.glob("sweeps/**/" + FILE):
        facts = read_json(file)
        if facts.get("identity") == wanted and facts.get("status") != "done":
            found.append((str(facts.get("written")), file.parent))
    return [root for _, root in sorted(found, reverse=True)]


def local_storage(root: Path) -> str:
    """The database beside a sweep."""
    return f"sqlite:///{(root / 'study.db').resolve()}"


def shown(url: str) -> str:
    """A database's URL without its password."""
    return make_url(url).render_as_string(hide_password=True)


def open_study(url: str, name: str, directions: Sequence[Direction]) -> optuna.Study:
    """The study of this name, made where there is none.

    Raises:
        TuneforgeError: the database cannot be written, or its study has other directions.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(study_name=name, storage=url, directions=list(directions), load_if_exists=True)
        study.set_user_attr("tuneforge", True)  # what can be read only is told before the first trial
    except (
        ArgumentError,
        SQLAlchemyError,
        StorageInternalError,
        DuplicatedStudyError,
        ImportError,
        ValueError,
    ) as error:
        first = next((e for e in (error.__cause__, error) if e is not None and str(e).strip()), error)
        raise TuneforgeError(
            "storage-not-usable",
            f"{_safe(url)} cannot be opened and written: {str(first).strip().splitlines()[0]}",
            path="hydra.sweeper.storage",
            fix="give a URL that Optuna can write to (sqlite:////path/study.db, postgresql://..., mysql://...)",
        ) from error
    present = [d.name.lower() for d in study.directions]
    if present != list(directions):
        raise TuneforgeError(
            "other-sweep",
            f"the study {name!r} of {_safe(url)} is to {', '.join(present)}, this sweep to {', '.join(directions)}",
            path="hydra.sweeper.study_name",
            fix="name another study",
        )
    return study


def _safe(url: str) -> str:
    try:
        return shown(url)
    except ArgumentError:
        return url.rpartition("@")[2]
