"""Which examples are held out for evaluation: by hash, so that the choice is the same on every machine and day."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from tuneforge.data.formats import Example
from tuneforge.errors import TuneforgeError, did_you_mean

BY = ("auto", "group", "row", "source")

_EXACT_BELOW = 100
"""Expected units on the smaller side under which the split is by count instead of by threshold. At 100 a threshold
misses the fraction by about 10 % of it; below, by so much that stability is not worth it."""


def split(
    examples: Sequence[Example], *, by: str, eval_fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """(train, eval), each in the order given.

    by=source takes the source's own flags, by=group keeps each group on one side, by=row decides each row alone;
    auto is the first of these that the examples allow. Identical examples are always on the same side.
    A larger set splits by threshold, and adding rows moves none; a small one is cut where the fraction is reached.
    """
    _check(by, eval_fraction)
    if eval_fraction == 0:
        return list(examples), []
    way = _way(examples, by)
    if way == "source":
        held = [bool(example.held_out) for example in examples]
        _check_flags(held)
    else:
        units = _units(examples, way)
        chosen = _choose(Counter(units), eval_fraction, seed, way)
        held = [unit in chosen for unit in units]
    pairs = list(zip(examples, held, strict=True))
    return [example for example, out in pairs if not out], [example for example, out in pairs if out]


def _check(by: str, eval_fraction: float) -> None:
    if by not in BY:
        raise TuneforgeError(
            "unknown-split", f"unknown way to split {by!r}", path="data.split.by", fix=did_you_mean(by, BY)
        )
    if not 0 <= eval_fraction < 1:
        message = f"wanted: a fraction from 0 to below 1; found: {eval_fraction}"
        raise TuneforgeError(
            "bad-fraction", message, path="data.split.eval_fraction", fix="0.05 holds out 5 % of the rows"
        )


def _way(examples: Sequence[Example], by: str) -> str:
    flagged = sum(example.held_out is not None for example in examples)
    grouped = any(example.group for example in examples)
    if by == "auto":
        if examples and flagged == len(examples):
            return "source"
        return "group" if grouped else "row"
    if by == "source" and flagged < len(examples):
        message = f"'source' needs every row marked by its source as held out or not; {flagged} of {len(examples)} are"
        raise TuneforgeError("split-by-source", message, path="data.split.by", fix="data.split.by=auto")
    if by == "group" and not grouped:
        message = "'group' needs rows with a group, and none has one"
        fix = "add a column group, conversation_id or document_id, or set data.split.by=row"
        raise TuneforgeError("split-by-group", message, path="data.split.by", fix=fix)
    return by


def _check_flags(held: Sequence[bool]) -> None:
    if len(set(held)) < 2:
        message = f"the source holds out {sum(held)} of these {len(held)} rows: a split needs some on each side"
        raise TuneforgeError(
            "split-by-source", message, path="data.split.by", fix="use more rows, or set data.split.by=row"
        )


def _units(examples: Sequence[Example], way: str) -> list[str]:
    """The key of each example's unit: what goes to one side as a whole."""
    contents = [_content(example) for example in examples]
    if way == "row":
        return contents
    # Groups that share an identical example are one unit: else the copy in training gives the evaluation away.
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = parent[above]
            key = above
        return key

    for example, content in zip(examples, contents, strict=True):
        if example.group:
            # The lesser name leads ("group" before "row"), so that the unit's key does not hang on the rows' order.
            low, high = sorted((root(f"group:{example.group}"), root(content)))
            parent[high] = low
    return [root(content) for content in contents]


def _content(example: Example) -> str:
    turns = [(message["role"], message["content"]) for message in example.messages]
    # JSON keeps the fields apart; its ASCII form also takes text that UTF-8 cannot.
    packed = json.dumps([turns, example.prompt, example.completion, example.text])
    return f"row:{hashlib.sha256(packed.encode()).hexdigest()}"


def _choose(sizes: Counter[str], eval_fraction: float, seed: int, way: str) -> set[str]:
    """The units to hold out: those first in hash order, less those so large that they would overshoot."""
    total = sizes.total()
    if len(sizes) < 2:
        what = "identical" if way == "row" else "of one group, or identical"
        fix = "data.split.by=row, data.split.eval_path=FILE or data.split.eval_fraction=0"
        message = f"{total} row{'s' if total != 1 else ''} cannot be split: all are {what}"
        raise TuneforgeError("cannot-split", message, path="data.split.eval_fraction", fix=fix)
    target = min(max(1, round(total * eval_fraction)), total - 1)
    small = len(sizes) * min(eval_fraction, 1 - eval_fraction) < _EXACT_BELOW
    place = {unit: _place(unit, seed) for unit in sizes}
    chosen: set[str] = set()
    taken = 0
    for unit in sorted(sizes, key=lambda unit: (place[unit], unit)):
        if taken >= target if small else place[unit] >= eval_fraction:
            break
        if sizes[unit] <= target and taken + sizes[unit] < total:
            chosen.add(unit)
            taken += sizes[unit]
    return chosen or {min(sizes, key=lambda unit: (sizes[unit], place[unit], unit))}


def _place(unit: str, seed: int) -> float:
    """A unit's place in [0, 1): 48 bits of its hash, which a float holds exactly."""
    digest = hashlib.sha256(f"{seed}\0{unit}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:6]) / 2**48
