"""Which device a plan is for, and how many: the hardware profile's, or the ones in this machine, without torch."""

import os
from dataclasses import dataclass

import psutil

from tuneforge.schema import Config

GIB = 2**30
AMPERE = 8.0
"""First compute capability with bf16 matrix units."""


@dataclass(frozen=True)
class PlannedDevice:
    """The device that a plan is for."""

    kind: str
    """cuda, rocm, mps or cpu."""
    name: str
    memory_bytes: float
    """Memory of one device."""
    bf16: bool
    """Whether it computes in bfloat16 at speed."""
    count: int
    """Devices of the run."""


def planned_device(config: Config) -> PlannedDevice:
    """The profile's device; with `hardware=auto`, this machine's GPUs as the driver lists them, else its CPU."""
    hardware = config.hardware
    asked = config.trainer.devices if isinstance(config.trainer.devices, int) else None
    host = float(psutil.virtual_memory().total)
    if hardware.kind != "auto":
        memory = hardware.vram_gb * GIB if hardware.vram_gb else host
        bf16 = hardware.kind in ("cuda", "rocm") and "bf16" in hardware.precisions
        return PlannedDevice(hardware.kind, hardware.name, memory, bf16, asked or 1)
    gpus = _nvidia_gpus() if config.trainer.accelerator in ("auto", "cuda") else []
    if not gpus:
        return PlannedDevice("cpu", "this machine (cpu)", host, False, asked or 1)
    name, _, capability = gpus[0]
    memory = min(float(total) for _, total, _ in gpus)
    return PlannedDevice("cuda", f"this machine ({name})", memory, capability >= AMPERE, asked or len(gpus))


def _nvidia_gpus() -> list[tuple[str, int, float]]:
    """Name, bytes of memory and compute capability of each visible NVIDIA GPU; none without a working driver."""
    try:
        import pynvml
    except ImportError:  # not a dependency on macOS, where no such GPU is supported
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in _visible(pynvml.nvmlDeviceGetCount())]
        return [_facts_of(pynvml, handle) for handle in handles]
    finally:
        pynvml.nvmlShutdown()


def _facts_of(pynvml: object, handle: object) -> tuple[str, int, float]:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)  # type: ignore[attr-defined]
    total = pynvml.nvmlDeviceGetMemoryInfo(handle).total  # type: ignore[attr-defined]
    return pynvml.nvmlDeviceGetName(handle), int(total), major + minor / 10  # type: ignore[attr-defined]


def _visible(count: int) -> list[int]:
    """Indices that CUDA_VISIBLE_DEVICES leaves; CUDA ignores the list from the first invalid index on."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(range(count))
    found: list[int] = []
    for part in listed.split(","):
        if not part.strip().isdigit() or int(part) >= count:
            break
        found.append(int(part))
    return found
