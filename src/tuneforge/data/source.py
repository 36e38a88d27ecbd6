"""Rows read, recognised, checked and split: all that can be known about the data before a model is loaded."""

import dataclasses
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tuneforge.console import warn
from tuneforge.data.columns import Columns, check_columns
from tuneforge.data.examples import Example, alike
from tuneforge.data.file import file
from tuneforge.data.folder_splits import TAG, by_column
from tuneforge.data.labels import Labels, labels_of
from tuneforge.data.pydoc import pydoc_text
from tuneforge.data.reading import KEY, Read, about, eval_format, read_examples
from tuneforge.data.rows import Row
from tuneforge.data.shuffle import shuffle_answers
from tuneforge.data.split import split
from tuneforge.errors import TuneforgeError
from tuneforge.schema.data import Data, Replay
from tuneforge.targets import make

T = TypeVar("T")
EVAL_KEY = "data.split.eval_path"


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
    metadata: tuple[str, ...] = ()
    """Columns about a row, which nothing is learnt from."""
    unread: Mapping[str, int] = field(default_factory=dict)
    """Other columns and turn keys that the format does not read -> rows that have them."""
    skipped: int = 0
    """Rows left out with data.on_bad=skip."""

    @property
    def digest(self) -> str:
        """That of the rows themselves, without those of other files."""
        return next(iter(self.digests.values()))


def read_rows(node: Mapping[str, Any]) -> list[Row]:
    """The rows of a node with the `_target_` of a source.

    Raises:
        TuneforgeError: they cannot be read, or the target gives something else.
    """
    rows: list[Any] = make("data", node, list)
    wrong = next((row for row in rows if not isinstance(row, Row)), None)
    if wrong is not None:
        message = f"{node['_target_']} gives a list of {type(wrong).__name__}, and data is a list of Row"
        raise TuneforgeError("wrong-kind", message, path="data", fix="return tuneforge.data.rows.Row (docs/plugins.md)")
    return rows


def read(data: Data, node: Mapping[str, Any], seed: int) -> Source:
    """Read and split the rows of `node`, the config's data node with its `_target_`.

    Raises:
        TuneforgeError: a file, row or split that cannot be used, named.
    """
    rows = read_rows(node)
    held_rows = _eval_rows(data, node)
    check_columns(data.columns, [*rows, *held_rows], data.format)
    if TAG not in data.columns:
        rows = by_column(rows, KEY)
    read = read_examples(rows, data.format, _own(data.columns, rows), data.on_bad)
    digests = {KEY if data.path else "data": _digest(rows)}
    if data.split.eval_path is not None:
        train, held = _with_eval_file(data, held_rows, read)
        digests[EVAL_KEY] = _digest(held_rows)
    else:
        train, held = split(read.examples, by=data.split.by, eval_fraction=data.split.eval_fraction, seed=seed)
    _check_sides(train, held)
    labels = labels_of(train, held, data.labels)
    if data.shuffle_answers:
        train = shuffle_answers(train, seed)
    train = sample(train, data.max_rows, seed)
    general = _replayed(data.replay, len(train), seed)
    if general:
        digests["data.replay.path"] = _digest(general)
    return Source(
        format=read.format,
        train=[*train, *general],
        eval=sample(held, min(filter(None, (data.max_rows, data.split.max_eval_rows)), default=0), seed),
        digests=digests,
        num_rows=len(rows),
        num_replayed=len(general),
        labels=labels,
        metadata=read.leftover.metadata,
        unread={name: count.rows for name, count in {**read.leftover.columns, **read.leftover.keys}.items()},
        skipped=read.skipped,
    )


def _eval_rows(data: Data, node: Mapping[str, Any]) -> list[Row]:
    """The rows of `data.split.eval_path`; of a folder with splits of its own, those that are held out."""
    if data.split.eval_path is None:
        return []
    with about(EVAL_KEY):
        rows = read_rows({**node, "path": data.split.eval_path})
    return [row for row in rows if row.held_out] or rows


def _with_eval_file(data: Data, rows: Sequence[Row], read: Read) -> tuple[list[Example], list[Example]]:
    """The train examples, and those of `data.split.eval_path`."""
    train = [example for example in read.examples if not example.held_out]
    if len(train) < len(read.examples):
        left = len(read.examples) - len(train)
        warn(f"{left} rows that {KEY} marks as held out are left out: {EVAL_KEY} is given")
    columns = _own(data.columns, rows)
    with about(EVAL_KEY):
        # Its own format, where both files hold conversations: what a chat template writes of them is alike.
        own = data.format == "auto" and all(example.messages for example in train)
        form = eval_format(rows, read.format, columns, may_differ=own)
        held = read_examples(rows, form, columns, data.on_bad, EVAL_KEY).examples
    both = alike([*train, *held])
    return both[: len(train)], both[len(train) :]


def _own(columns: Columns, rows: Sequence[Row]) -> Columns:
    """The assignments of a file's own columns: others are of the other file."""
    names = {name for row in rows for name in row.fields}
    return {ours: own for ours, own in columns.items() if (ours if own is None else own) in names}


def slice_of(rows: Source, share: float, at_least: int, seed: int) -> Source:
    """A share of the train examples, for trials that need few."""
    count = max(at_least, round(len(rows.train) * share))
    return dataclasses.replace(rows, train=sample(rows.train, count, seed), eval=sample(rows.eval, 8, seed))


def _replayed(replay: Replay, count: int, seed: int) -> list[Example]:
    """So many general examples that they are `replay.fraction` of all; all there are, where that is fewer."""
    if not replay.fraction:
        return []
    wanted = max(1, round(count * replay.fraction / (1 - replay.fraction)))
    general = general_examples(replay.path, wanted, seed, "data.replay.path")
    if wanted > len(general):
        warn(f"data.replay wants {wanted} general rows and {replay.path} has {len(general)}: all of them are used")
    return general


def general_examples(path: str, count: int, seed: int, key: str) -> list[Example]:
    """Up to `count` examples of a file of any format, or of the standard library's documentation (`bundled`).

    Raises:
        TuneforgeError: a file that cannot be read.
    """
    if path == "bundled":
        rows = [row for row in pydoc_text() if not row.held_out]
        return sample(read_examples(rows, key=key).examples, count, seed)
    with about(key, fixed=True):
        return sample(read_examples(file(path=path), on_bad="skip", key=key).examples, count, seed)


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
