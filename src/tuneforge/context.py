"""What a run's parts share: the checked config, the machine, the settled numbers and the run folder."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from tuneforge.artifacts.folder import RunFolder
from tuneforge.data.batches import Batch, Collate, Rows, StepSampler
from tuneforge.data.encode import Document
from tuneforge.data.formats import Example
from tuneforge.machine import Machine
from tuneforge.method import Method
from tuneforge.schema import Config
from tuneforge.settle import Settled
from tuneforge.trial import Trial

OBSERVED_ROWS = 4
"""Rows in a batch that is looked at without training (`svd_batch_size` of PEFT's EVA example)."""


@dataclass(frozen=True)
class Context:
    """Everything that is known once data and tokenizer are loaded and before weights are."""

    config: Config
    tree: dict[str, Any]
    """The config with the options of every `_target_`."""
    machine: Machine
    settled: Settled
    folder: RunFolder
    tokenizer: PreTrainedTokenizerBase
    architecture: PretrainedConfig
    method: Method
    """The built method."""
    train_rows: Rows
    eval_rows: Rows
    eval_examples: tuple[Example, ...] = ()
    """The held-out examples before they became tokens, for metrics of an objective's own."""
    general: tuple[Document, ...] = ()
    """General documents for `regularise.ewc`."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How the result generates; exported with it."""
    trial: Trial | None = None
    """The trial of a sweep that this run is."""

    @property
    def num_general(self) -> int:
        """Number of general documents."""
        return len(self.general)

    def sampler(self, *, rank: int, start_step: int = 0) -> StepSampler:
        """The train rows of a process, from an optimizer step on."""
        settled = self.settled
        return StepSampler(
            self.train_rows.num_labels,
            rows_per_step=settled.rows_per_step,
            accumulate=settled.accumulate,
            world_size=settled.world_size,
            rank=rank,
            seed=self.config.seed,
            num_steps=settled.num_steps,
            start_step=start_step,
        )

    def collate(self) -> Collate:
        """Collation of packed sequences: flash attention separates documents in a batch of one row only."""
        flatten = self.config.model.attn_implementation == "flash_attention_2"
        return Collate(int(self.tokenizer.pad_token_id or 0), flatten)

    def first_batches(self, count: int, device: torch.device) -> list[Batch]:
        """The first train rows in `count` batches, on the device; the same whatever devices and rows a pass."""
        sampler = StepSampler(
            self.train_rows.num_labels,
            rows_per_step=OBSERVED_ROWS,
            accumulate=1,
            world_size=1,
            rank=0,
            seed=self.config.seed,
            num_steps=count,
        )
        collate = self.collate()
        found: list[Any] = []
        for items in islice(sampler, count):
            batch: Any = collate([self.train_rows[item] for item in items])
            found.append({k: v.to(device) for k, v in batch.items()})
        return found

    def general_batches(self, device: torch.device) -> Iterator[Any]:
        """One document each, on the device."""
        collate = Collate(0)
        for row in range(len(self.general)):
            rows = Rows([self.general[row]], self.settled.max_length, packing=False)
            batch: Any = collate([rows[0, int(rows.num_labels[0])]])
            yield {k: v.to(device) for k, v in batch.items()}
