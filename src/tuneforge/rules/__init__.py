"""What cannot go together across groups: one small function a rule, all of them asked before any weight loads.

A rule sees the checked config, and the tree with the options of every `_target_`. Its docstring's first line is what
`tuneforge doctor --rules` shows. What only a loaded file can tell (the device that is there, the model's architecture)
is asked again by `device_problems` and `architecture_problems` when it is known.
"""

from tuneforge.rules import data, devices, guards, loggers, methods, strategies
from tuneforge.rules.architectures import architecture_problems
from tuneforge.rules.data import classifies
from tuneforge.rules.devices import device_problems
from tuneforge.rules.registry import RULES, broken, listing
from tuneforge.rules.strategies import (
    may_split,
    parts_in_host,
    splits_weights,
    tensor_parallel_size,
    uneven_groups,
)

__all__ = [
    "RULES",
    "architecture_problems",
    "broken",
    "classifies",
    "data",
    "device_problems",
    "devices",
    "guards",
    "listing",
    "loggers",
    "may_split",
    "methods",
    "parts_in_host",
    "splits_weights",
    "strategies",
    "tensor_parallel_size",
    "uneven_groups",
]
