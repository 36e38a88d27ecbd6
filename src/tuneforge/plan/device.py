"""Which device a plan is for, and how many: the hardware profile's, or the ones in this machine, without torch."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from tuneforge.schema import Config

GIB = 2**30
AMPERE = 8.0
"""First compute capability with bf16 matrix units."""
DRM = Path("/sys/class/drm")
"""Where Linux lists graphics cards."""


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
    if hardware.kind == "auto":
        found = _present(config.trainer.accelerator)
        most = hardware.vram_gb * GIB if hardware.vram_gb else found.memory_bytes
        return replace(found, memory_bytes=min(most, found.memory_bytes), count=asked or found.count)
    memory = hardware.vram_gb * GIB if hardware.vram_gb else float(psutil.virtual_memory().total)
    bf16 = hardware.kind in ("cuda", "rocm") and "bf16" in hardware.precisions
    return PlannedDevice(hardware.kind, hardware.name, memory, bf16, asked or 1)


def _present(accelerator: str) -> PlannedDevice:
    """What this machine has, and how many of them."""
    host = float(psutil.virtual_memory().total)
    if accelerator in ("auto", "cuda"):
        gpus = _nvidia_gpus()
        if gpus:
            name, _, capability = gpus[0]
            memory = min(float(total) for _, total, _ in gpus)
            return PlannedDevice("cuda", f"this machine ({name})", memory, capability >= AMPERE, len(gpus))
        amd = _amd_gpus(DRM)
        if amd:
            return PlannedDevice("rocm", "this machine (AMD GPU)", min(amd), True, len(amd))
    if accelerator in ("auto", "mps") and (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return PlannedDevice("mps", "this machine (Apple GPU)", host, False, 1)
    return PlannedDevice("cpu", "this machine (cpu)", host, False, 1)


def _amd_gpus(cards: Path) -> list[float]:
    """Bytes of memory of each AMD GPU, where torch is a build that computes on them."""
    if "rocm" not in importlib.metadata.version("torch"):
        return []
    return [float(file.read_text()) for file in sorted(cards.glob("card*/device/mem_info_vram_total"))]


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
        every = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        chosen = _visible([str(pynvml.nvmlDeviceGetUUID(handle)) for handle in every])
        return [_facts_of(pynvml, i if isinstance(i, str) else every[i]) for i in chosen]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _facts_of(pynvml: Any, gpu: Any) -> tuple[str, int, float]:
    """Of a GPU by its handle, or of a part of one (MIG), which has its own memory, by its id."""
    part = pynvml.nvmlDeviceGetHandleByUUID(gpu) if isinstance(gpu, str) else gpu
    whole = pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(part) if isinstance(gpu, str) else gpu
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(whole)
    return pynvml.nvmlDeviceGetName(part), int(pynvml.nvmlDeviceGetMemoryInfo(part).total), major + minor / 10


def _visible(uuids: Sequence[str]) -> list[int | str]:
    """What CUDA_VISIBLE_DEVICES leaves: indices of GPUs, named by index or by the start of their UUID, or one MIG id.

    CUDA ignores the list from the first invalid entry on, and shows a process one MIG part at most.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(range(len(uuids)))
    found: list[int | str] = []
    for part in map(str.strip, listed.split(",")):
        if part.startswith("MIG-"):
            return found or [part]
        named = [i for i, uuid in enumerate(uuids) if part.startswith("GPU-") and uuid.startswith(part)]
        index = int(part) if part.isdigit() else named[0] if len(named) == 1 else len(uuids)
        if index >= len(uuids):
            break
        found.append(index)
    return found
