"""`python -m tuneforge.doctor.probe STEP...`: the child process that imports and tries the libraries for the doctor.

A broken native library can end its process and a broken driver can hang it. So this is done in a process of its own
that says which step it begins and how each one ended, one JSON object a line behind a mark: libraries print too.
"""

import importlib
import json
import sys
from collections.abc import Callable
from typing import Any

from tuneforge.doctor.facts import IMPORT, MARK


def main(steps: list[str]) -> int:
    """Run the steps in order; what a step raises is its result."""
    from tuneforge.console import quiet_libraries

    quiet_libraries()
    for step in steps:
        _say({"begin": step})
        try:
            facts = _import(step.removeprefix(IMPORT)) if step.startswith(IMPORT) else FACTS[step]()
        # Whatever a broken library raises is what the doctor was asked for; it is reported, not swallowed.
        except Exception as error:
            _say({"end": step, "error": f"{type(error).__name__}: {error}"})
        else:
            _say({"end": step, "facts": facts})
    return 0


def _say(record: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{MARK}{json.dumps(record)}\n")
    sys.stdout.flush()


def _import(module: str) -> dict[str, Any]:
    if module == "bitsandbytes":
        from tuneforge.compat import import_bitsandbytes

        import_bitsandbytes()
    else:
        importlib.import_module(module)
    return {}


def torch_facts() -> dict[str, Any]:
    """How torch was built and which devices it sees; nothing is computed yet."""
    import torch

    available = torch.cuda.is_available()
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "mps": torch.backends.mps.is_available(),
        "why_no_gpu": "" if available or not (torch.version.cuda or torch.version.hip) else _why_no_gpu(),
        "gpus": [_gpu(i) for i in range(torch.cuda.device_count())] if available else [],
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def _why_no_gpu() -> str:
    import torch

    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error)
    return ""


def _gpu(index: int) -> dict[str, Any]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    return {"name": facts.name, "bytes": facts.total_memory, "major": facts.major, "minor": facts.minor}


def compute() -> dict[str, Any]:
    """Multiply on every device: one that is listed may have no kernels in this build, or be held by others."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    free = []
    for index in range(torch.cuda.device_count() if kind == "cuda" else 1):
        x = torch.ones(64, 64, device=torch.device(kind, index))
        total = float((x @ x).sum())
        assert total == 64**3, f"64x64 ones multiplied on {kind}:{index} add up to {total}, not {64**3}"
        free.append(torch.cuda.mem_get_info(index)[0] if kind == "cuda" else 0)
    return {"free": free}


def nf4() -> dict[str, Any]:
    """Quantise a tensor to NF4 and back on the device that a run would take."""
    import torch

    from tuneforge.compat import import_bitsandbytes

    import_bitsandbytes()
    from bitsandbytes import functional
    from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    x = torch.linspace(-1, 1, 64 * 64, device=device).reshape(64, 64)
    packed, state = functional.quantize_4bit(x, quant_type="nf4")
    error = float((functional.dequantize_4bit(packed, state) - x).abs().max())
    return {"device": device, "native": not isinstance(lib, ErrorHandlerMockBNBNativeLibrary), "error": error}


def gloo() -> dict[str, Any]:
    """Reduce a number in a group of one: needs gloo in the build and a network interface it can name."""
    import torch
    from torch import distributed

    if not distributed.is_available() or not distributed.is_gloo_available():
        return {"built": False}
    distributed.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
    distributed.all_reduce(torch.ones(1))
    distributed.destroy_process_group()
    return {"built": True, "nccl": distributed.is_nccl_available()}


FACTS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": torch_facts,
    "compute": compute,
    "nf4": nf4,
    "gloo": gloo,
}
"""The steps that are not imports: those of `facts.TRIALS`."""

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
