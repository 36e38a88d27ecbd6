"""Which folder a run writes to, and which checkpoint it goes on from."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneforge.artifacts.folder import RunFolder, read_json
from tuneforge.compose import Composed
from tuneforge.console import say
from tuneforge.errors import Problem, TuneforgeError

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


def choose(composed: Composed) -> Place:
    """The place of this run by `resume`: none, auto, a run folder or a checkpoint.

    Raises:
        TuneforgeError: the folder holds another run, or what is to be resumed does not fit or is damaged.
    """
    wanted = composed.config.resume
    if wanted is None:
        return fresh(composed)
    if wanted == "auto":
        found = newest_unfinished(composed)
        if found is None:
            say("resume=auto: no unfinished run of this config, starting fresh")
            return fresh(composed)
        return _continue(composed, found, None)
    path = Path(wanted).expanduser()
    if path.suffix == ".ckpt" and path.is_file():
        return _continue(composed, path.parent.parent, path)
    if (path / "run.json").is_file():
        return _continue(composed, path, None)
    raise TuneforgeError(
        "nothing-to-resume",
        f"{wanted} is neither a run folder (with run.json) nor a checkpoint (.ckpt)",
        path="resume",
        fix="give a folder under output_root, a file of its checkpoints/, or resume=auto",
    )


def identity(tree: dict[str, Any]) -> str:
    """Hash of the config less the keys that may change."""
    kept = {k: v for k, v in _flat(tree).items() if not any(k == m or k.startswith(f"{m}.") for m in MAY_CHANGE)}
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


def _continue(composed: Composed, root: Path, checkpoint: Path | None) -> Place:
    from tuneforge.artifacts.checkpoint_io import newest_whole

    facts = read_json(root / "run.json")
    if facts["identity"] != identity(composed.tree):
        raise _changed(composed, root)
    found = checkpoint or newest_whole(root / "checkpoints")
    if found is None:
        say(f"resume: {root} has no whole checkpoint yet, starting it over")
    else:
        say(f"resuming {root} from {found.name}")
    return Place(RunFolder(root), found)


def _changed(composed: Composed, root: Path) -> TuneforgeError:
    import yaml

    before = _flat(yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8")))
    now = _flat(composed.tree)
    keys = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)]
    keys = [k for k in keys if not any(k == m or k.startswith(f"{m}.") for m in MAY_CHANGE)]
    return TuneforgeError.of(
        [
            Problem(
                "config-changed",
                f"{root} was run with another config; resuming must not change "
                + ", ".join(f"{k} ({before.get(k)!r} -> {now.get(k)!r})" for k in keys[:8]),
                "resume",
                fix=f"set these back, or start a new run without resume; only {', '.join(MAY_CHANGE)} may change",
            )
        ]
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    return {p: v for k, node in tree.items() for p, v in _flat(node, f"{prefix}.{k}" if prefix else str(k)).items()}
