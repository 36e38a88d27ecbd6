"""What a run's parts share: the checked config, the machine, the settled numbers and the run folder."""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from tuneforge.artifacts.folder import RunFolder
from tuneforge.data.batches import Rows
from tuneforge.data.formats import Example
from tuneforge.machine import Machine
from tuneforge.method import Method
from tuneforge.schema import Config
from tuneforge.settle import Settled


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
