"""Which folder a run writes to, and which checkpoint it goes on from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneforge.artifacts import whole
from tuneforge.artifacts.folder import RunFolder, read_json
from tuneforge.compose import Composed
from tuneforge.console import say, warn
from tuneforge.data.source import Source
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.interpolation import leaves, lookup

# What may differ between a run and its resumption: where it looks, what it prints, how long it goes on.
MAY_CHANGE = (
    "resume",
    "output_root",
    "logger",
    "callbacks",
    "samples",
    "sanity",
    "lr_find",
    "trainer.max_steps",
    "trainer.log_every_n_steps",
)


@dataclass(frozen=True)
class Place:
    """A run's folder, and the checkpoint to go on from, if any."""

    folder: RunFolder
    checkpoint: Path | None = None
    finished: bool = False
    """The run has ended and there is nothing left to do."""

    @property
    def step(self) -> int:
        """Optimizer steps that are done; -1 where nothing is, not even the measuring of the base at step 0."""
        return whole.step_of(self.checkpoint) if self.checkpoint else -1


def choose(composed: Composed, rows: Source) -> Place:
    """The place of this run by `resume`: none, auto, a run folder or a checkpoint.

    Raises:
        TuneforgeError: the folder holds another run; what is to be resumed is damaged, or its config or rows changed.
    """
    wanted = composed.config.resume
    if wanted is None:
        return fresh(composed)
    if wanted == "auto":
        found = newest_unfinished(composed)
        if found is None:
            say("resume=auto: no unfinished run of this config, starting fresh")
            return fresh(composed)
        return _continue(composed, rows, found)
    path = Path(wanted).expanduser()
    if (path / whole.MANIFEST).is_file() or (path.is_dir() and path.parent.name == "checkpoints"):
        return _continue(composed, rows, path.parent.parent, path)
    if (path / "run.json").is_file():
        return _continue(composed, rows, path)
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


def newest_unfinished(composed: Composed) -> Path | None:
    """The newest folder under `output_root` (or the run folder itself) whose run has this identity and did not end."""
    wanted = identity(composed.tree)
    records = [*Path(composed.config.output_root).rglob("run.json"), composed.run_dir / "run.json"]
    fitting = []
    for record in {r.resolve() for r in records if r.is_file()}:
        facts = read_json(record)
        if facts.get("identity") == wanted and facts.get("status") != "done":
            fitting.append((str(facts.get("started")), record.parent))
    return max(fitting)[1] if fitting else None


def fresh(composed: Composed) -> Place:
    """The run folder of a run that starts.

    Raises:
        TuneforgeError: it holds a run already.
    """
    if (composed.run_dir / "run.json").exists():
        raise TuneforgeError(
            "folder-in-use",
            f"{composed.run_dir} already holds a run, and nothing is overwritten",
            path="hydra.run.dir",
            fix=f"choose another folder, or go on with it: resume={composed.run_dir}",
        )
    return Place(RunFolder(composed.run_dir))


def _continue(composed: Composed, rows: Source, root: Path, checkpoint: Path | None = None) -> Place:
    facts = read_json(root / "run.json")
    if facts["identity"] != identity(composed.tree):
        raise _config_changed(composed, root)
    _refuse_other_rows(composed, root, facts["data"], rows)
    whole.tidy(root / "checkpoints")
    if checkpoint is not None:
        whole.require(checkpoint)
    elif facts["status"] == "done" and _max_steps(root) == composed.config.trainer.max_steps:
        say(f"resume: {root} is finished, and there is nothing left to do; trainer.max_steps=N trains it further")
        return Place(RunFolder(root), finished=True)
    else:
        checkpoint, damaged = whole.newest(root / "checkpoints")
        for path, wrong in damaged.items():
            warn(Problem("checkpoint-damaged", f"{path} is passed over: {wrong}", "resume"))
    if checkpoint is None:
        say(f"resume: {root} has no whole checkpoint, starting it over")
    else:
        say(f"resuming {root} from {checkpoint.name}")
    return Place(RunFolder(root), checkpoint)


def _config_of(root: Path) -> dict[str, Any]:
    import yaml

    tree: dict[str, Any] = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8"))
    return tree


def _max_steps(root: Path) -> Any:
    return lookup(_config_of(root), "trainer.max_steps")


def _config_changed(composed: Composed, root: Path) -> TuneforgeError:
    before, now = leaves(_config_of(root)), leaves(composed.tree)
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k) and not _may_change(k)]
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


def _may_change(key: str) -> bool:
    return any(key == m or key.startswith(f"{m}.") for m in MAY_CHANGE)
