"""Rows of documents, the order in which steps take them, and their collation into tensors."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tuneforge.data.encode import IGNORE, Document, Ids
from tuneforge.data.packing import pack


class Batch(TypedDict):
    """One micro-batch."""

    input_ids: Tensor
    """[rows, tokens]"""
    labels: Tensor
    """[rows, tokens], shifted: the label at t is the token at t + 1 of the same document, or -100."""
    position_ids: Tensor
    """[rows, tokens], restarting at 0 with each document: this alone tells the model where documents end."""
    num_labels: Tensor
    """[]: supervised tokens of the whole optimizer step, over all micro-batches and devices."""


class Rows(Dataset[tuple[Ids, Ids, Ids, int]]):
    """Documents laid into rows, packed or one a row."""

    EMPTY = -1
    """Index of a row of padding without labels."""

    def __init__(self, documents: Sequence[Document], max_length: int, packing: bool) -> None:
        self.documents = documents
        lengths = [len(d.input_ids) for d in documents]
        self.rows = pack(lengths, max_length) if packing else [[i] for i in range(len(documents))]
        per_document = np.asarray([d.num_labels for d in documents], dtype=np.int64)
        self.num_labels: Ids = np.asarray([per_document[row].sum() for row in self.rows], dtype=np.int64)
        """[rows]: supervised tokens of each row."""
        self.num_tokens: Ids = np.asarray([sum(lengths[i] for i in row) for row in self.rows], dtype=np.int64)
        """[rows]: tokens of each row, padding excluded."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def documents_per_row(self) -> float:
        """Mean number of documents in a row."""
        return len(self.documents) / len(self.rows)

    def __getitem__(self, index: int | tuple[int, int]) -> tuple[Ids, Ids, Ids, int]:
        """Ids, shifted labels and positions of a row, and the label count of the step it is part of."""
        row, step_labels = index if isinstance(index, tuple) else (index, 0)
        if row == self.EMPTY:
            return np.zeros(1, np.int64), np.full(1, IGNORE, np.int64), np.zeros(1, np.int64), step_labels
        documents = [self.documents[i] for i in self.rows[row]]
        ids = np.concatenate([d.input_ids for d in documents])
        labels = np.concatenate([np.append(d.labels[1:], IGNORE) for d in documents])
        positions = np.concatenate([np.arange(len(d.input_ids)) for d in documents])
        return ids, labels, positions, step_labels


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Endless micro-batches whose order depends on (seed, position) alone.

    The stream is one seeded permutation of the rows after another; optimizer step k takes the rows from
    k * rows_per_step on, so every step is whole, a resume needs the step number and nothing else, and the
    supervised tokens of a step are known to each device before its first micro-batch, without talking.

    A step takes the same rows on any number of devices. They are dealt out as evenly as possible over the micro-batches
    of all devices, so that sizes differ by one row at most; a micro-batch without a row gets `Rows.EMPTY`.
    """

    def __init__(
        self,
        num_labels: Ids,
        *,
        rows_per_step: int,
        accumulate: int,
        world_size: int,
        rank: int,
        seed: int,
        num_steps: int,
        start_step: int = 0,
    ) -> None:
        self.num_labels = num_labels
        self.rows_per_step = rows_per_step
        """Rows of one optimizer step over all devices."""
        self.accumulate = accumulate
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.num_steps = num_steps
        self.start_step = start_step

    def __len__(self) -> int:
        """Micro-batches of the whole run, those before `start_step` included: the loop counts from the run's start."""
        return self.num_steps * self.accumulate

    def step_rows(self, step: int) -> Ids:
        """The rows of optimizer step `step`, in order."""
        total = len(self.num_labels)
        first, last = step * self.rows_per_step, (step + 1) * self.rows_per_step - 1
        epochs = [self._permutation(e) for e in range(first // total, last // total + 1)]
        offset = first % total
        rows: Ids = np.concatenate(epochs)[offset : offset + self.rows_per_step]
        return rows

    def micro_batches(self, step: int) -> list[Ids]:
        """The rows of optimizer step `step` by micro-batch: pass by pass, and within a pass device by device."""
        return np.array_split(self.step_rows(step), self.accumulate * self.world_size)

    def _permutation(self, epoch: int) -> Ids:
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.num_labels))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.start_step
        while True:
            labels = int(self.num_labels[self.step_rows(step)].sum())
            for micro in self.micro_batches(step)[self.rank :: self.world_size]:
                yield [(int(r), labels) for r in micro] or [(Rows.EMPTY, labels)]
            step += 1


class Collate:
    """Rows into a padded batch. Padding is a document of its own at the end, without labels."""

    def __init__(self, pad_id: int, flatten: bool = False) -> None:
        self.pad_id = pad_id
        self.flatten = flatten
        """Lay all rows end to end as one: flash attention reads documents from positions in a batch of one only."""

    def __call__(self, items: Sequence[tuple[Ids, Ids, Ids, int]]) -> Batch:
        """Tensors of a micro-batch; see `Batch` for their shapes."""
        if self.flatten:
            joined = [np.concatenate([item[k] for item in items]) for k in range(3)]
            items = [(joined[0], joined[1], joined[2], items[0][3])]
        longest = max(len(ids) for ids, *_ in items)
        # Lengths in steps of 8 keep tensor cores aligned and the number of distinct shapes small.
        width = -(-longest // 8) * 8 if not self.flatten else longest
        ids = np.full((len(items), width), self.pad_id, dtype=np.int64)
        labels = np.full((len(items), width), IGNORE, dtype=np.int64)
        positions = np.zeros((len(items), width), dtype=np.int64)
        for i, (row, row_labels, row_positions, _) in enumerate(items):
            n = len(row)
            ids[i, :n], labels[i, :n], positions[i, :n] = row, row_labels, row_positions
            positions[i, n:] = np.arange(width - n)
        return Batch(
            input_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            position_ids=torch.from_numpy(positions),
            num_labels=torch.tensor(items[0][3]),
        )


class TimedLoader(DataLoader[Any]):
    """Knows for how long its reader has waited for it."""

    waited = 0.0
    """Seconds."""

    def __iter__(self) -> Any:
        """The batches of the loader."""
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return
            yield batch


class EvalSampler(Sampler[list[int]]):
    """Each row once over all devices; a device without a row left gets `Rows.EMPTY`, so that all run alike often."""

    def __init__(self, num_rows: int, per_device: int, world_size: int, rank: int) -> None:
        mine = list(range(rank, num_rows, world_size))
        longest = -(-num_rows // world_size)
        mine += [Rows.EMPTY] * (longest - len(mine))
        self.batches = [mine[i : i + per_device] for i in range(0, longest, per_device)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def real_tokens(batch: Batch) -> Tensor:
    """Which tokens are no padding; bool [rows, tokens].

    Padding is a row's last document, without labels; every real document has some, or would have been dropped.
    """
    document = (batch["position_ids"] == 0).cumsum(1)
    last = document == document[:, -1:]
    padded = ~((batch["labels"] != IGNORE) & last).any(1, keepdim=True)
    return torch.logical_not(last & padded)
