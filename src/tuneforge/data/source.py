"""Rows read, recognised, checked and split: all that can be known about the data before a model is loaded."""

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tuneforge.console import warn
from tuneforge.data.file import file
from tuneforge.data.formats import Example, convert, recognise, shuffle_answers
from tuneforge.data.labels import Labels, labels_of
from tuneforge.data.pydoc import pydoc_text
from tuneforge.data.rows import Row
from tuneforge.data.split import split
from tuneforge.errors import TuneforgeError
from tuneforge.schema.data import Data, Replay
from tuneforge.targets import make

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """The examples of a run."""

    format: str
    """alpaca, chat, prompt_completion, text, classification, or a plugin's function."""
    train: list[Example]
    eval: list[Example]
    digests: dict[str, str]
    """Config key -> sha256 over all rows that it brings in, in order: a resumed run must see the same."""
    num_rows: int
    num_replayed: int = 0
    """General examples among `train`."""
    labels: Labels | None = None
    """The classes, for classification."""

    @property
    def digest(self) -> str:
        """That of the rows themselves, without those of other files."""
        return next(iter(self.digests.values()))


def read(data: Data, node: Mapping[str, Any], seed: int) -> Source:
    """Read and split the rows of `node`, the config's data node with its `_target_`.

    Raises:
        TuneforgeError: a file, row or split that cannot be used, named.
    """
    rows: list[Row] = make(node)
    form = recognise(rows, data.format)
    examples, skipped = convert(rows, form, data.on_bad)
    if skipped:
        first = skipped[0].message
        warn(f"{len(skipped)} of {len(rows)} rows do not fit the format and were skipped; the first: {first}")
    digests = {"data.path" if data.path else "data": _digest(rows)}
    if data.split.eval_path is not None:
        held_rows: list[Row] = make({**node, "path": data.split.eval_path})
        digests["data.split.eval_path"] = _digest(held_rows)
        train, held = examples, convert(held_rows, recognise(held_rows, form), data.on_bad)[0]
    else:
        train, held = split(examples, by=data.split.by, eval_fraction=data.split.eval_fraction, seed=seed)
    _check_sides(train, held)
    labels = labels_of(train, held, data.labels)
    if data.shuffle_answers:
        train = shuffle_answers(train, seed)
    train = sample(train, data.max_rows, seed)
    general = _replayed(data.replay, len(train), seed)
    if general:
        digests["data.replay.path"] = _digest(general)
    return Source(
        format=form,
        train=[*train, *general],
        eval=sample(held, min(filter(None, (data.max_rows, data.split.max_eval_rows)), default=0), seed),
        digests=digests,
        num_rows=len(rows),
        num_replayed=len(general),
        labels=labels,
    )


def slice_of(rows: Source, share: float, at_least: int, seed: int) -> Source:
    """A share of the train examples, for trials that need few."""
    count = max(at_least, round(len(rows.train) * share))
    return dataclasses.replace(rows, train=sample(rows.train, count, seed), eval=sample(rows.eval, 8, seed))


def _replayed(replay: Replay, count: int, seed: int) -> list[Example]:
    """So many general examples that they are `replay.fraction` of all; all there are, where that is fewer."""
    if not replay.fraction:
        return []
    wanted = max(1, round(count * replay.fraction / (1 - replay.fraction)))
    general = general_examples(replay.path, wanted, seed)
    if wanted > len(general):
        warn(f"data.replay wants {wanted} general rows and {replay.path} has {len(general)}: all of them are used")
    return general


def general_examples(path: str, count: int, seed: int) -> list[Example]:
    """Up to `count` examples of a file of any format, or of the standard library's documentation (`bundled`).

    Raises:
        TuneforgeError: a file that cannot be read.
    """
    rows = [r for r in pydoc_text() if not r.held_out] if path == "bundled" else file(path=path)
    return sample(convert(rows, recognise(rows), "skip")[0], count, seed)


def _check_sides(train: Sequence[Example], held: Sequence[Example]) -> None:
    for side, name in ((train, "train"), (held, "eval")):
        if not side:
            raise TuneforgeError(
                "empty-split",
                f"the split leaves no {name} row ({len(train)} train, {len(held)} eval)",
                path="data.split",
                fix="give more rows, change data.split.eval_fraction, or set data.split.eval_path=FILE",
            )


def sample(examples: list[T], limit: int, seed: int) -> list[T]:
    """At most `limit` of them (0: all), the same ones for the same seed, in their own order."""
    if not limit or len(examples) <= limit:
        return examples
    chosen = sorted(random.Random(seed).sample(range(len(examples)), limit))  # noqa: S311  not a secret
    return [examples[i] for i in chosen]


def _digest(rows: Sequence[Row | Example]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr(dataclasses.astuple(row)).encode())
    return digest.hexdigest()
