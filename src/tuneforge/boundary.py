"""Errors of the libraries under us, told in the words of the config; the original stays the cause (TUNEFORGE_DEBUG=1).

What goes wrong while weights and tokenizers load is told in `tuneforge.models`, where the model's key is known; here is
what can come up anywhere in a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tuneforge.errors import LostError, TuneforgeError, disk_error
from tuneforge.schema import Config


@contextmanager
def library_errors_explained(config: Config) -> Iterator[None]:
    """Raise a library's error as ours where its cause is known; let all others through."""
    try:
        yield
    except TuneforgeError:
        raise
    except Exception as error:
        explained = _explained(config, error)
        if explained is None:
            raise
        raise explained from error


def _explained(config: Config, error: Exception) -> TuneforgeError | None:
    text = str(error)
    if not isinstance(error, RuntimeError | OSError):
        return disk_error(error, config.output_root)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return _out_of_memory(config, text)
    if "DataLoader worker" in text:
        return TuneforgeError(
            "worker-died",
            f"a process that collates batches died ({_first_line(text)}): too little shared or host memory, mostly",
            path="data.num_workers",
            fix="set data.num_workers=0, or give the container more shared memory (--shm-size=8g)",
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


def _out_of_memory(config: Config, text: str) -> TuneforgeError:
    """In the order of what it costs: smaller passes are free, checkpointing costs a fifth of the time."""
    ways = []
    if config.batch.per_device != 1:
        ways.append("batch.per_device=1 (the effective batch stays)")
    if config.trainer.gradient_checkpointing is not True:
        ways.append("trainer.gradient_checkpointing=true")
    if not config.trainer.activation_offload:
        ways.append("trainer.activation_offload=true")
    keeps = f"add {', then '.join(ways)}, with resume=auto to go on with this run; or " if ways else ""
    return TuneforgeError(
        "out-of-memory",
        f"the device ran out of memory: {_first_line(text)}",
        path="batch.per_device",
        fix=f"{keeps}start a new run with a smaller data.max_length, or with method=qlora",
    )


def _first_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[0][:200] if lines else "no more is known"
