"""Whether what a run is going to write fits on its disk, and the copy that is written in the host's memory."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
from torch import nn

from tuneforge.artifacts import whole
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.sharding import shape_of

GIB = 2**30
GATHERED = 4
"""A gathered checkpoint may take a fourth of the host's memory: with the copy that is being written, half of it."""


@dataclass(frozen=True)
class Sizes:
    """Bytes that a run writes."""

    checkpoint: int
    """One checkpoint: trained weights, and what the optimizer and the regularisers keep for each of them."""
    result: int
    """The exported adapter or model."""


def sizes(model: nn.Module, state_bytes: float, exported: nn.Module | None, exported_bytes: int = 4) -> Sizes:
    """By the shapes of the trained weights; `state_bytes` is for one of them.

    `exported` is the model where the result is all of it, in `exported_bytes` a weight; None: the trained weights.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    weights = sum(shape_of(p).numel() * p.element_size() for p in trained)
    result = sum(shape_of(p).numel() for p in exported.parameters()) * exported_bytes if exported else weights
    return Sizes(int(weights + state_bytes * sum(shape_of(p).numel() for p in trained)), result)


def too_large_to_gather(checkpoint: int) -> bool:
    """Whether so many bytes are too much of this host's memory."""
    return checkpoint * GATHERED > psutil.virtual_memory().total


def check_room(checkpoints: Path, wanted: Sizes, keep: int, *, copied: bool, hosts: int = 1) -> None:
    """Nothing, where `keep` checkpoints, the one that is written before an old one goes, and the result fit.

    `hosts` share a checkpoint: the copy of it is in the memory of so many.

    Raises:
        TuneforgeError: they do not, or with `copied` the host's memory has no room for a copy; with the numbers.
    """
    missing = max(1, keep + 1 - len(whole.found(checkpoints))) if keep else 0
    needed = missing * wanted.checkpoint + wanted.result
    folder = next(f for f in (checkpoints, *checkpoints.absolute().parents) if f.is_dir())
    free, memory = shutil.disk_usage(folder).free, psutil.virtual_memory().available
    problems = []
    if needed > free:
        problems.append(
            Problem(
                "no-room-on-disk",
                f"{folder} has {free / GIB:.2f} GiB free, and {needed / GIB:.2f} are wanted: {missing} checkpoints of "
                f"{wanted.checkpoint / GIB:.2f} and a result of {wanted.result / GIB:.2f}",
                "output_root",
                fix="free some space, set another output_root, or lower callbacks.checkpoints.keep_best or keep_last",
            )
        )
    copy = wanted.checkpoint / hosts
    if keep and copied and copy > memory:
        problems.append(
            Problem(
                "no-room-for-copy",
                f"{copy / GIB:.2f} GiB of a checkpoint are copied before it is written, and the host has "
                f"{memory / GIB:.2f} GiB of memory free",
                "callbacks.checkpoints.asynchronous",
                fix="set callbacks.checkpoints.asynchronous=false: training then waits while checkpoints are written",
            )
        )
    if problems:
        raise TuneforgeError.of(problems)
