"""Whether a resumed run takes the steps that it took: as many rows in each, and the same rows as tokens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tuneforge.artifacts.kept import read_record
from tuneforge.compose import Composed
from tuneforge.console import say, warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.resume import Place


def check_spread(composed: Composed, place: Place, settled: Mapping[str, Any]) -> None:
    """Say how a resumed run's steps are spread over processes, where that is not as it was.

    Args:
        composed: the config.
        place: where the run goes on.
        settled: the numbers that it is to be run with, as in run.json.

    Raises:
        TuneforgeError: its steps would have another number of rows, and the position in a checkpoint counts steps.
    """
    if place.checkpoint is None:
        return
    facts, root = read_record(place.folder.root), place.folder.root
    then, now = _rows_per_step(facts["settled"]), _rows_per_step(settled)
    before, after = _spread(facts["choices"], facts["settled"]), _spread(composed.choices, settled)
    if then != now:
        raise TuneforgeError(
            "batch-changed",
            f"a step of {root} takes {then} rows, and would take {now} now ({after}): an earlier version of tuneforge "
            "rounded a step to whole passes of batch.per_device rows on every device",
            path="resume",
            fix="start a new run without resume",
        )
    if before != after:
        say(
            f"resume: {after} instead of {before}: the same rows a step; sums are rounded in another order, and "
            "dropout, if there is any, draws other masks"
        )


def check_tokens(composed: Composed, place: Place, now: Mapping[str, str]) -> None:
    """Refuse to continue a run with a template or tokenizer that has changed; with `--from`, warn.

    Args:
        composed: the config.
        place: where the run continues.
        now: the digests of the template and the tokenizer, by config key.

    Raises:
        TuneforgeError: the same rows become other tokens than before the checkpoint.
    """
    fix = "put its file back as it was, or start a new run without resume"
    if composed.base is not None:
        for key, message in _other_tokens(composed.base, now).items():
            warn(Problem("other-tokens", message, key, fix="put its file back as it was, unless that is meant"))
    if place.checkpoint is not None:
        changed = _other_tokens(place.folder.root, now)
        if changed:
            raise TuneforgeError.of(Problem("tokens-changed", text, key, fix=fix) for key, text in changed.items())


def _other_tokens(root: Path, now: Mapping[str, str]) -> dict[str, str]:
    """Config key -> what made the tokens of the run in `root` and is different now."""
    before = read_record(root)["data"].get("tokenised_by", {})
    what = {"model.chat_template": "chat template", "model.path": "tokenizer"}
    return {
        key: f"the {what[key]} is not that of {root}: sha256 {before[key][:16]} then, {digest[:16]} now"
        for key, digest in now.items()
        if before.get(key, digest) != digest
    }


def _rows_per_step(settled: Mapping[str, Any]) -> int:
    """Rows of an optimizer step; runs of version 0.1 and before recorded its factors alone."""
    product = settled["per_device"] * settled["accumulate"] * settled["world_size"]
    return int(settled.get("rows_per_step", product))


def _spread(choices: Mapping[str, Any], settled: Mapping[str, Any]) -> str:
    rows = f"{settled['per_device']} rows x {settled['accumulate']} x {settled['world_size']}"
    return f"strategy={choices['strategy']}, {rows}"
