"""A checkpoint in parts: each process writes what it holds of split tensors to a file of its own.

The files are those of torch's distributed checkpoint on safetensors storage, and its reader deals them out to any
number of processes. Its writer puts a whole file together in memory, and the index of its own storage is a pickle.
"""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor

from tuneforge.sharding import Place

SUFFIX = ".safetensors"
_PLACES, _FIRST = "DCP_SHARDING_INFO", "saved_offsets"
"""Where torch's reader looks for the places of a file's tensors in the whole ones."""
_WEIGHT, _STATE = "weight", "state"

Like = Callable[[str, torch.Size, torch.dtype], Tensor | None]
"""Name, whole shape and type of a stored tensor -> what it is read into, whole or split; None: it is not wanted."""


@dataclass(frozen=True)
class Part:
    """What one process holds of a tensor."""

    values: Tensor
    place: Place
    """Where they are in the whole tensor: a slice of each dimension."""


def file_of(rank: int) -> str:
    """Name of a process's file."""
    return f"part-{rank:05d}{SUFFIX}"


def write(file: Path, parts: Mapping[str, Part]) -> None:
    """Write what one process holds, which is in host memory.

    Raises:
        OSError: they could not be written.
    """
    own = {name: part for name, part in parts.items() if part.values.numel()}
    places = {name: {_FIRST: [s.start for s in part.place]} for name, part in own.items()}
    try:
        save_file({name: part.values for name, part in own.items()}, file, {_PLACES: json.dumps(places)})
    except SafetensorError as error:
        raise OSError(*error.args) from error


def are_in(checkpoint: Path) -> bool:
    """Whether a checkpoint has parts beside its `state.pt`."""
    return any(checkpoint.glob(f"*{SUFFIX}"))


def read(checkpoint: Path, like: Like) -> dict[str, Tensor]:
    """The stored tensors that are wanted, each read into what `like` gives for it; no process waits for another."""
    reader = HuggingFaceStorageReader(str(checkpoint))
    found: dict[str, Tensor] = {}
    for name, facts in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(facts, TensorStorageMetadata)
        into = like(name, facts.size, facts.properties.dtype)
        if into is not None:
            found[name] = into
    with warnings.catch_warnings():
        # That it talks to no other process is what `no_dist` asks for.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load(found, storage_reader=reader, no_dist=True)
    return found


def whole(name: str, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Read all rows into host memory."""
    return torch.empty(size, dtype=dtype)


def take_apart(checkpoint: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """A checkpoint without its split tensors, and these by name."""
    split: dict[str, DTensor] = {}

    def without(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
        split.update({f"{prefix}/{k}": v for k, v in values.items() if isinstance(v, DTensor)})
        return {k: v for k, v in values.items() if not isinstance(v, DTensor)}

    (optimizer,) = checkpoint["optimizer_states"]
    states = {i: without(f"{_STATE}/{i}", own) for i, own in optimizer["state"].items()}
    weights = without(_WEIGHT, checkpoint["state_dict"])
    rest = {**checkpoint, "state_dict": weights, "optimizer_states": [{**optimizer, "state": states}]}
    return rest, split


def put_together(checkpoint: Mapping[str, Any], split: Mapping[str, Tensor]) -> None:
    """The opposite of `take_apart`, in place."""
    for name, tensor in split.items():
        weight, number, key = place_of(name)
        if weight is not None:
            checkpoint["state_dict"][weight] = tensor
        else:
            checkpoint["optimizer_states"][0]["state"][number][key] = tensor


def place_of(name: str) -> tuple[str | None, int, str]:
    """Of a stored tensor: the weight that it is; or None, the number of its weight in the optimizer, and the state."""
    kind, _, rest = name.partition("/")
    if kind == _WEIGHT:
        return rest, -1, ""
    number, _, key = rest.partition("/")
    return None, int(number), key
