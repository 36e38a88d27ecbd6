"""Which folder a run writes to, and which checkpoint it goes on from."""

import errno
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tuneforge.artifacts import owned, whole
from tuneforge.artifacts.claim import Claim, ForeignError, HeldError
from tuneforge.artifacts.folder import (
    MARK,
    STOPPED,
    RunFolder,
    in_the_way,
    is_marked,
    is_marker_copied,
    read_metrics,
)
from tuneforge.artifacts.kept import read_config, read_record
from tuneforge.compose import Composed
from tuneforge.console import say, warn
from tuneforge.data.source import Source
from tuneforge.errors import Problem, TuneforgeError, disk_error
from tuneforge.interpolation import leaves, lookup
from tuneforge.shell import local_path, typed
from tuneforge.world import restarts

# What may differ between a run and its resumption: where it looks, what it prints, how long it goes on, how many
# processes collate rows, and how a step is spread, as long as its rows are the same (`resume_checks`).
MAY_CHANGE = (
    "resume",
    "output_root",
    "logger",
    "callbacks",
    "samples",
    "sanity",
    "lr_find",
    "strategy",
    "data.num_workers",
    "batch.per_device",
    "trainer.devices",
    "trainer.gradient_checkpointing",
    "trainer.activation_offload",
    "trainer.max_steps",
    "trainer.log_every_n_steps",
)


# What conf/config.yaml names a run folder after: the second it was composed in.
_SECOND = re.compile(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d")

RECORD_KEYS = {"identity", "status", "data"}
"""Keys by which a run.json is taken for one, in a folder without a marker."""

RANGE_TEST = "lr_find.json"
"""In the folder of `tuneforge lr_find`: what it saw."""

RESULTS = ("adapter", "model")
"""Folders of a run's result."""


@dataclass(frozen=True)
class Place:
    """A run's folder, and the checkpoint to go on from, if any."""

    folder: RunFolder
    checkpoint: Path | None = None
    finished: bool = False
    """The run has ended and there is nothing left to do."""
    claim: AbstractContextManager[Any] = field(default_factory=nullcontext)
    """Held until the run ends, by the process that chose the place."""

    @property
    def step(self) -> int:
        """Optimizer steps that are done; -1 where nothing is, not even the measuring of the base at step 0."""
        return whole.step_of(self.checkpoint) if self.checkpoint else -1


def choose(composed: Composed, rows: Source) -> Place:
    """The place of this run by `resume`: none, auto, a run folder or a checkpoint.

    Raises:
        TuneforgeError: the folder holds another run, or one that is running; what is to be resumed is damaged or cannot
            be read, or its config or rows changed.
    """
    with _disk_errors_told():
        wanted = composed.config.resume
        if wanted is None and restarts():
            say("torchrun has started this run again: going on as with resume=auto")
            wanted = "auto"
        if wanted is None:
            return fresh(composed)
        if wanted == "auto":
            return _newest(composed, rows)
        return _named(composed, rows, wanted)


def _newest(composed: Composed, rows: Source) -> Place:
    """The newest unfinished run of this config; else what a run of this config that is done left in the run folder.

    The latter is a job that was queued again after its end: it must not fail.
    """
    for root in unfinished(composed):
        try:
            return _continue(composed, rows, root)
        except HeldError as held:
            say(f"resume=auto: {held}, and is left to it")
    if _facts(composed.run_dir / "run.json").get("identity") == identity(composed.tree):
        return _held(composed, rows, composed.run_dir)
    say("resume=auto: no unfinished run of this config, starting fresh")
    return fresh(composed)


def _named(composed: Composed, rows: Source, wanted: str) -> Place:
    path = local_path(wanted)
    path = path.resolve() if path.is_symlink() else path  # the user's own name for a run (`latest`)
    if (path / whole.MANIFEST).is_file() or (path.is_dir() and path.parent.name == "checkpoints"):
        return _held(composed, rows, path.parent.parent, path)
    if (path / "run.json").is_file():
        return _held(composed, rows, path)
    if is_marked(path):
        return _in(path, key="resume")
    raise TuneforgeError(
        "nothing-to-resume",
        f"{wanted} is neither a run folder (with run.json) nor a checkpoint (step-... with {whole.MANIFEST})",
        path="resume",
        fix="give a folder under output_root, a folder of its checkpoints/, or resume=auto",
    )


def identity(tree: dict[str, Any]) -> str:
    """Hash of the config less the keys that may change."""
    kept = {k: v for k, v in leaves(tree).items() if not _may_change(k)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def unfinished(composed: Composed) -> list[Path]:
    """Folders under `output_root`, and the run folder, whose run has this identity and did not end; newest first."""
    wanted = identity(composed.tree)
    records = [*Path(composed.config.output_root).rglob("run.json"), composed.run_dir / "run.json"]
    fitting = []
    for record in {r.resolve() for r in records if r.is_file()}:
        facts = _facts(record)
        if not facts and is_marked(record.parent):
            warn(Problem("damaged-file", f"{record} cannot be read, and its run is passed over", "resume"))
        # A trial belongs to its sweep, which goes on with it by its folder.
        if facts.get("identity") == wanted and facts.get("status") != "done" and not facts.get("trial"):
            fitting.append((str(facts.get("started")), record.parent))
    return [root for _, root in sorted(fitting, reverse=True)]


def fresh(composed: Composed) -> Place:
    """The run folder of a run that starts; `-2` and so on is added to one named by the second that another took.

    Raises:
        TuneforgeError: it holds a run already, or cannot be made.
    """
    root = composed.run_dir
    by_second = _SECOND.fullmatch("/".join(root.parts[-2:])) is not None
    with _disk_errors_told():
        if not by_second:
            return _in(root)
        for number in itertools.count(1):
            with suppress(FileExistsError):
                return _in(root if number == 1 else root.with_name(f"{root.name}-{number}"), new=True)
    raise AssertionError("numbers do not end")


def _in(root: Path, *, new: bool = False, key: str = "hydra.run.dir") -> Place:
    """A run that starts in this folder: a new or empty one, or one that a run was ended in before it had a record."""
    record = root / "run.json"
    # Claiming a folder writes into it, so what is no folder for a run is refused before.
    if is_marked(root) and is_marker_copied(root):
        if record.exists():
            raise _holds_a_run(root)
        raise _foreign(ForeignError(root, f"has a marker ({MARK}) that was copied from another folder"), key)
    if not is_marked(root) and _facts(record).keys() >= RECORD_KEYS:  # of before folders had markers
        raise _holds_a_run(root)
    try:
        claim = Claim(root, new=new)
    except HeldError as held:
        raise _in_use(held) from held
    except ForeignError as error:
        raise _foreign(error, key) from error
    try:
        _require_unused(root, key)
    except TuneforgeError:
        claim.release(unused=True)
        raise
    if claim.was_marked:
        say(f"{root} is of a run that was ended before it had begun: it starts there afresh")
        owned.tidy(root, RESULTS)
    return Place(RunFolder(root), claim=claim)


def _require_unused(root: Path, key: str) -> None:
    """Nothing, where a run can start in a folder.

    Raises:
        TuneforgeError: it holds a run or a range test.
    """
    if (root / "run.json").exists():
        raise _holds_a_run(root)
    if (root / RANGE_TEST).exists():
        message = f"{root} holds a learning-rate range test, and nothing is overwritten"
        raise TuneforgeError("folder-in-use", message, path=key, fix="choose another folder")


def _holds_a_run(root: Path) -> TuneforgeError:
    return TuneforgeError(
        "folder-in-use",
        f"{root} already holds a run, and nothing is overwritten",
        path="hydra.run.dir",
        fix=f"choose another folder, or go on with it: {typed('resume', root)}",
    )


def _foreign(error: ForeignError, key: str) -> TuneforgeError:
    fix = "name the folder of a run" if key == "resume" else "name a folder that does not exist yet"
    message = f"{error}, and a run writes only into a folder that it made, that is empty or that is a run"
    return TuneforgeError("folder-not-a-run", message, path=key, fix=fix)


def _held(composed: Composed, rows: Source, root: Path, checkpoint: Path | None = None) -> Place:
    try:
        return _continue(composed, rows, root, checkpoint)
    except HeldError as held:
        raise _in_use(held) from held


def _continue(composed: Composed, rows: Source, root: Path, checkpoint: Path | None = None) -> Place:
    # Nothing is written into a folder before it is known to hold a run.
    for link in (root / name for name in ("run.json", "config.yaml") if (root / name).is_symlink()):
        raise in_the_way(link)
    read_record(root)
    read_config(root)
    try:
        claim = Claim(root, known=True)
    except ForeignError as error:
        raise _foreign(error, "resume") from error
    try:
        return _go_on(composed, rows, claim, checkpoint)
    except BaseException:
        claim.release(unused=True)
        raise


def _go_on(composed: Composed, rows: Source, claim: Claim, checkpoint: Path | None) -> Place:
    root = claim.root
    facts = read_record(root)
    if facts["identity"] != identity(composed.tree):
        raise _config_changed(composed, root)
    _refuse_other_rows(composed, root, facts["data"], rows)
    _refuse_the_same_end(composed, root, facts)
    read_metrics(RunFolder(root).metrics)  # a damaged one is told before anything is written
    whole.tidy(root / "checkpoints")
    owned.tidy(root, RESULTS)
    if checkpoint is not None:
        whole.require(checkpoint)
    elif facts["status"] == "done" and _max_steps(root) == composed.config.trainer.max_steps:
        say(f"resume: {root} is finished, and there is nothing left to do; trainer.max_steps=N trains it further")
        return Place(RunFolder(root), finished=True, claim=claim)
    else:
        checkpoint, damaged = whole.newest(root / "checkpoints")
        for path, wrong in damaged.items():
            warn(Problem("checkpoint-damaged", f"{path} is passed over: {wrong}", "resume"))
    if checkpoint is None:
        say(f"resume: {root} has no whole checkpoint, starting it over")
    else:
        say(f"resuming {root} from {checkpoint.name}")
    return Place(RunFolder(root), checkpoint, claim=claim)


def _facts(path: Path) -> dict[str, Any]:
    """What a run.json says; nothing where there is none, or another program's."""
    try:
        facts: object = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


@contextmanager
def _disk_errors_told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = disk_error(error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else None
        raise full or TuneforgeError(
            "folder-not-usable",
            f"{error.filename or 'a run folder'}: {error.strerror or error}",
            path="output_root",
            fix="runs are looked for and written there: choose a folder that you may read and write",
        ) from error


def _in_use(held: HeldError) -> TuneforgeError:
    return TuneforgeError(
        "run-in-use", f"{held}, and one run at a time writes there", path="resume", fix="wait for it, or end it first"
    )


def _max_steps(root: Path) -> Any:
    return lookup(read_config(root), "trainer.max_steps")


def _config_changed(composed: Composed, root: Path) -> TuneforgeError:
    before, now = leaves(read_config(root)), leaves(composed.recorded)
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and not _may_change(k)]
    # The same interpolation or mask can stand for another value.
    keys = keys or [k for k in composed.from_environment if not _may_change(k)]
    return TuneforgeError(
        "config-changed",
        f"{root} was run with another config; resuming must not change "
        + ", ".join(f"{k} ({before.get(k)!r} -> {now.get(k)!r})" for k in keys[:8]),
        path="resume",
        fix=f"set these back, or start a new run without resume; only {', '.join(MAY_CHANGE)} may change",
    )


def _refuse_other_rows(composed: Composed, root: Path, data: Mapping[str, Any], rows: Source) -> None:
    """The positions of a checkpoint are those in the rows it was made with."""
    problems = []
    for key, digest in rows.digests.items():
        before = data["digests"].get(key)
        if before != digest:
            name = leaves(composed.tree).get(key) or composed.choices.get("data")
            message = f"the rows of {name} are not those of {root}: sha256 {before} then, {digest} now"
            fix = "put them back as they were, or start a new run without resume"
            problems.append(Problem("rows-changed", message, key, fix=fix))
    if problems:
        raise TuneforgeError.of(problems)


def _refuse_the_same_end(composed: Composed, root: Path, facts: Mapping[str, Any]) -> None:
    """What a guard has stopped it would stop again: with the same rows and steps, the same options see the same."""
    if facts["status"] != "refused":
        return
    before, now = read_config(root)["callbacks"], composed.recorded["callbacks"]
    stopped = {
        name: f"stopped it at step {event['step']}: {event['message']}"
        for name, guard in facts.get("guards", {}).items()
        for event in guard["events"]
        if event["did"] == STOPPED
    }
    failed = [gate["name"] for gate in facts.get("gates", ()) if not gate["passed"]]
    if not stopped and failed and _max_steps(root) == composed.config.trainer.max_steps:
        stopped["quality_gates"] = f"refused its result: {', '.join(failed)}"
    for name, what in stopped.items():
        if now.get(name) == before.get(name):
            raise TuneforgeError(
                "stopped-by-guard",
                f"{root}: callbacks.{name} {what}. With the same options it would again",
                path="resume",
                fix=f"go on all the same with callbacks.{name}.action=warn, or start a new run with other settings",
            )


def _may_change(key: str) -> bool:
    return any(key == m or key.startswith(f"{m}.") for m in MAY_CHANGE)
