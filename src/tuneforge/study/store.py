"""Where a sweep is kept: its folder, with what it searches and how far it is, and the study in a database."""

import datetime
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import optuna
from omegaconf.errors import OmegaConfBaseException
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from tuneforge.artifacts.claim import Claim, ForeignError, HeldError
from tuneforge.artifacts.folder import MARK, is_marked, is_marker_copied, write_json
from tuneforge.artifacts.kept import Shape, damaged, read_object
from tuneforge.console import say, warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.masking import mask, remember_keys
from tuneforge.schema.sweep import Direction, Sweep
from tuneforge.study.space import Space
from tuneforge.trial import storage_url

FILE = "sweep.json"
"""In the sweep's folder: what it is and how far it is."""

DOCUMENTED = "${oc.env:STUDY_URL}"
"""The one variable that a sweep's file may name (docs/sweeps.md)."""

_MAY_CHANGE = ("n_trials", "n_jobs", "timeout", "max_failure_rate", "storage", "study_name")
"""Settings that a sweep may go on with others of."""

SHAPE: Shape = {
    **dict.fromkeys(("identity", "study", "storage", "status", "written"), str),
    **{key: [str] for key in ("objectives", "directions", "fixed", "trial", "config_dirs")},
    "pid": int,
}


@dataclass
class Kept:
    """sweep.json."""

    identity: str
    """Hash of what is searched, and how."""
    study: str
    storage: str
    """The database's URL as typed; "" for study.db in the folder."""
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
            TuneforgeError: there is none, or it is damaged.
        """
        if not (root / FILE).is_file():
            raise TuneforgeError(
                "not-a-sweep",
                f"{root} has no {FILE} that can be read, so it is not the folder of a sweep",
                fix="give the folder that --multirun wrote, under outputs/sweeps/",
            )
        facts = read_object(root / FILE, SHAPE, "record of a sweep")
        directions = facts["directions"]
        if not directions or len(directions) != len(facts["objectives"]) or set(directions) - set(get_args(Direction)):
            raise damaged(root / FILE, f"is no record of a sweep: directions is {directions}")
        return cls(**{f.name: facts[f.name] for f in fields(cls)})

    def url(self, root: Path) -> str:
        """Of the study, for reading it again. The file may come from elsewhere, and must not lead there.

        Raises:
            TuneforgeError: it names another database than one in the folder or `${oc.env:STUDY_URL}`.
        """
        if self.storage == DOCUMENTED:
            return self.storage
        url = self.storage or local_storage(root)
        if _is_within(root, url):
            return url
        raise TuneforgeError(
            "storage-elsewhere",
            f"{root / FILE} keeps its study in {self.storage or url}, outside of the sweep's folder; a file is not "
            "trusted to choose which database is opened, or which variable is read",
            path="hydra.sweeper.storage",
            fix=f"if that is your database: tuneforge report {root} 'hydra.sweeper.storage={self.storage or url}'",
        )


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
            held = Claim(root, kind="sweep", known=True)
        except HeldError as error:
            say(f"{error}, and is left to it")
            continue
        say(f"going on with {root}: a sweep of the same command that has not ended (hydra.sweep.dir=DIR starts afresh)")
        return held
    try:
        if is_marked(folder) and is_marker_copied(folder) and not _is_sweep(folder):
            raise ForeignError(folder, f"has a marker ({MARK}) that was copied from another folder")
        held = Claim(folder, kind="sweep", known=_is_sweep(folder))
    except ForeignError as error:
        message = f"{error}, and a sweep writes only into a folder that it made, that is empty or that is a sweep"
        fix = "name a folder that does not exist yet"
        raise TuneforgeError("folder-not-a-run", message, path="hydra.sweep.dir", fix=fix) from error
    except HeldError as error:
        fix = "wait for it, end it, or name another folder"
        raise TuneforgeError("sweep-in-use", str(error), path="hydra.sweep.dir", fix=fix) from error
    except OSError as error:
        message = f"{error.filename}: {error.strerror}"
        fix = "choose a folder that you may write to"
        raise TuneforgeError("not-writable", message, path="hydra.sweep.dir", fix=fix) from error
    try:
        other = os.path.lexists(folder / FILE) and Kept.read(folder).identity != wanted
    except TuneforgeError:
        held.release(unused=True)
        raise
    if other:
        held.release(unused=True)
        raise TuneforgeError(
            "other-sweep",
            f"{folder} holds a sweep over another space or config, and nothing is overwritten",
            path="hydra.sweep.dir",
            fix="give the same command to go on with it, or name another folder",
        )
    return held


def _is_sweep(folder: Path) -> bool:
    """Whether its sweep.json is one; of before folders had markers."""
    try:
        Kept.read(folder)
    except TuneforgeError:
        return False
    return True


def _unfinished(output_root: Path, wanted: str) -> list[Path]:
    """Folders of sweeps with this identity that have not ended, newest first."""
    found = []
    for file in output_root.glob("sweeps/**/" + FILE):
        try:
            facts = read_object(file, SHAPE, "record of a sweep")
        except TuneforgeError as error:
            if is_marked(file.parent):
                warn(Problem("damaged-file", f"{error}; its sweep is passed over"))
            continue
        if facts["identity"] == wanted and facts["status"] != "done":
            found.append((facts["written"], file.parent))
    return [root for _, root in sorted(found, reverse=True)]


def _is_within(root: Path, url: str) -> bool:
    """Whether a URL is that of a database file in the folder, links followed."""
    if "${" in url:
        return False
    try:
        parts = make_url(url)
    except ArgumentError:
        return False
    file = Path(parts.database or "")
    if not parts.drivername.startswith("sqlite") or parts.query or not file.is_absolute():
        return False
    return file.resolve().is_relative_to(root.resolve())


def local_storage(root: Path) -> str:
    """The database beside a sweep."""
    return f"sqlite:///{root.resolve() / 'study.db'}"


def check_database(root: Path, name: str) -> None:
    """Nothing, where study.db of a sweep's folder holds its study. It is opened for reading alone.

    Raises:
        TuneforgeError: it is missing or damaged: Optuna would make an empty one in its place.
    """
    file = root / "study.db"
    if not file.is_file():
        raise damaged(file, "is missing")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(file.resolve()))}?mode=ro", uri=True)) as database:
            known = [row[0] for row in database.execute("SELECT study_name FROM studies")]
    except sqlite3.Error as error:
        raise damaged(file, f"is no database of a sweep: {error}") from error
    if name not in known:
        raise damaged(file, f"has no study {name!r}, which {FILE} names")


def open_study(storage: str, name: str, directions: Sequence[Direction]) -> optuna.Study:
    """The study of this name, made where there is none; `storage` is as typed.

    Raises:
        TuneforgeError: the database cannot be written, or its study has other directions; a password was typed.
    """
    url = _url(storage)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = _make_study(url, name, directions)
        study.set_user_attr("tuneforge", True)  # what can be read only is told before the first trial
        present = [d.name.lower() for d in study.directions]
    except (
        ArgumentError,
        SQLAlchemyError,
        StorageInternalError,
        DuplicatedStudyError,
        ImportError,
        LookupError,
        RuntimeError,
        ValueError,
    ) as error:
        first = next((e for e in (error.__cause__, error) if e is not None and str(e).strip()), error)
        raise TuneforgeError(
            "storage-not-usable",
            f"{storage} cannot be opened and written: {str(first).strip().splitlines()[0]}",
            path="hydra.sweeper.storage",
            fix="give a URL that Optuna can write to (sqlite:////path/study.db, postgresql://..., mysql://...)",
        ) from error
    if present != list(directions):
        raise TuneforgeError(
            "other-sweep",
            f"the study {name!r} of {storage} is to {', '.join(present)}, this sweep to {', '.join(directions)}",
            path="hydra.sweeper.study_name",
            fix="name another study",
        )
    return study


def load_study(storage: str, name: str) -> optuna.Study:
    """The study of this name, for reading: neither a study nor a table nor a database file is made.

    Raises:
        TuneforgeError: the database cannot be opened, or it has no such study.
    """
    url = _url(storage)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        file = make_url(url).database if make_url(url).get_backend_name() == "sqlite" else None
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"there is no file {file}")
        tables = RDBStorage(url, skip_table_creation=True)
        return optuna.load_study(study_name=name, storage=tables)
    # Optuna raises RuntimeError for tables of another version of it.
    except (
        ArgumentError,
        SQLAlchemyError,
        StorageInternalError,
        ImportError,
        OSError,
        RuntimeError,
        ValueError,
    ) as error:
        first = next((e for e in (error.__cause__, error) if e is not None and str(e).strip()), error)
        why = str(first).strip().splitlines()[0]
    except KeyError:
        why = f"it has no study {name!r}"
    except LookupError as error:  # a text where a table keeps one of a few words
        why = str(error).splitlines()[0]
    raise no_study(storage, why)


def no_study(storage: str, why: str) -> TuneforgeError:
    """The error of a database whose study cannot be read."""
    return TuneforgeError(
        "no-study",
        f"{storage} has no results to read: {why}",
        path="hydra.sweeper.storage",
        fix="restore the database of this sweep; a new sweep needs a new folder",
    )


def _make_study(url: str, name: str, directions: Sequence[Direction]) -> optuna.Study:
    """Several machines that begin together all make the tables of an empty database, and all but one then fail."""
    for pause in (0.5, 2.0):
        try:
            return optuna.create_study(study_name=name, storage=url, directions=list(directions), load_if_exists=True)
        except (IntegrityError, ProgrammingError):
            time.sleep(pause)
    return optuna.create_study(study_name=name, storage=url, directions=list(directions), load_if_exists=True)


def _url(storage: str) -> str:
    path = "hydra.sweeper.storage"
    try:
        url = storage_url(storage)
        remember_keys(url)
    except OmegaConfBaseException as error:
        message = str(error).splitlines()[0]
        fix = "set the variable, on each machine that takes part"
        raise TuneforgeError("storage-not-usable", f"{storage}: {message}", path=path, fix=fix) from error
    with suppress(ArgumentError):  # what is no URL is told when it is opened
        if url == storage and make_url(url).password:
            raise TuneforgeError(
                "password-in-config",
                f"{mask(url)} holds a password, which files and logs would show",
                path=path,
                fix="put the URL into the environment: 'hydra.sweeper.storage=${oc.env:STUDY_URL}'",
            )
    return url
