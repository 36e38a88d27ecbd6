"""Errors of the libraries under us, told in the words of the config; the original stays the cause (TUNEFORGE_DEBUG=1).

What goes wrong while weights and tokenizers load is told in `tuneforge.models`, where the model's key is known; here is
what can come up anywhere in a run.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from tuneforge import rules
from tuneforge.errors import LostError, TuneforgeError, disk_error
from tuneforge.schema import Config


@contextmanager
def library_errors_explained(config: Config, tree: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Raise a library's error as ours where its cause is known; let all others through.

    With the options of every `_target_` in `tree`, nothing is advised that a rule would refuse.
    """
    try:
        yield
    except TuneforgeError:
        raise
    except Exception as error:
        explained = _explained(config, tree, error)
        if explained is None:
            raise
        raise explained from error


def _explained(config: Config, tree: Mapping[str, Any] | None, error: Exception) -> TuneforgeError | None:
    text = str(error)
    on_host = isinstance(error, MemoryError) or any(words in text for words in _HOST_MEMORY)
    if on_host or isinstance(error, torch.OutOfMemoryError) or _is_out_of_memory(error, text):
        return _out_of_memory(config, tree, text, on_host=on_host)
    if not isinstance(error, RuntimeError | OSError):
        return disk_error(error, config.output_root)
    if "DataLoader worker" in text:
        return TuneforgeError(
            "worker-died",
            f"a process that collates batches died ({_first_line(text)}): too little shared or host memory, mostly",
            path="data.num_workers",
            fix="add data.num_workers=0, with resume=auto to go on with this run, or give the container more shared "
            "memory (--shm-size=8g)",
        )
    if "not used in producing the loss" in text or "finished reduction in the prior iteration" in text:
        return TuneforgeError(
            "unused-weights",
            "some trained weights took no part in the loss, and processes cannot agree on their gradients",
            path="method",
            fix="use one process (trainer.devices=1), or name in method.target_modules what the rows pass through",
        )
    if isinstance(error, torch.distributed.DistBackendError) or "gloo" in text:
        return LostError(
            "process-lost",
            f"another process of this run is gone: {_first_line(text)}",
            fix="mostly the host's memory ran out (see dmesg), or its machine went away; resume=auto goes on",
        )
    return disk_error(error, config.output_root)


_HOST_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_DEVICE_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What cuBLAS, bitsandbytes, Triton and the MPS backend say without torch's own exception."""


def _is_out_of_memory(error: Exception, text: str) -> bool:
    return isinstance(error, RuntimeError) and any(words in text for words in _DEVICE_MEMORY)


def _out_of_memory(config: Config, tree: Mapping[str, Any] | None, text: str, *, on_host: bool) -> TuneforgeError:
    """In the order of what it costs: smaller passes are free, checkpointing costs a fifth of the time.

    What is advised for going on leaves the run's identity as it is, and no rule refuses it.
    """
    ways = []
    if config.batch.per_device != 1:
        ways.append("batch.per_device=1 (the effective batch stays)")
    recomputing = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, gradient_checkpointing=True))
    refused = tree is not None and any(rules.broken(recomputing, tree))
    if config.trainer.gradient_checkpointing is not True and not refused:
        ways.append("trainer.gradient_checkpointing=true")
    if not config.trainer.activation_offload and not on_host:
        ways.append("trainer.activation_offload=true")
    keeps = f"add {', then '.join(ways)}, with resume=auto to go on with this run; or " if ways else ""
    return TuneforgeError(
        "out-of-memory",
        f"{'this machine' if on_host else 'the device'} ran out of memory: {_first_line(text)}",
        path="batch.per_device",
        fix=f"{keeps}start a new run with a smaller data.max_length, or with method=qlora",
    )


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0][:200] if lines else "no more is known"
