"""What a run computes on: torch's build, the driver, the devices, 4-bit weights, compilers, the hardware profile."""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from tuneforge.doctor.check import Check, fail, gib, missing, ok, pip_install, system_install, warn
from tuneforge.doctor.facts import Smi, Step, Torch
from tuneforge.yaml_files import read_yaml_file

PCI = Path("/sys/bus/pci/devices")
CPUINFO = Path("/proc/cpuinfo")
CUDA_BUILD = "install a CUDA build of torch, see pytorch.org/get-started"


def torch_unknown(imported: Step, asked: Step) -> Check:
    """Torch cannot say which devices there are."""
    if imported.error:
        return warn("torch", "does not import, so no device was looked at", "mend the package torch first")
    fix = f"reboot after a driver update; else {CUDA_BUILD}"
    return fail("torch", f"imports, and cannot say which devices there are: {asked.error}", fix)


def torch_build(torch: Torch, smi: Smi) -> Check:
    """Which torch this is, and whether it was built for what is in the machine."""
    found = f"{torch.version}, built for {torch.build}"
    if torch.build == "CPU" and smi.gpus:
        fix = f"{CUDA_BUILD}: {pip_install('torch', options='--force-reinstall --index-url THE_ONE_NAMED_THERE')}"
        return warn("torch", f"{found}, and nvidia-smi shows {_named(smi.gpus)}: runs stay on the CPU", fix)
    if torch.build == "CPU" and Path("/dev/kfd").exists():
        return warn("torch", f"{found}, and there is an AMD GPU", "install a ROCm build, see pytorch.org/get-started")
    return ok("torch", found)


def driver(smi: Smi) -> Check:
    """The NVIDIA driver."""
    if smi.error:
        fix = "reboot after a driver update; in a container start it with --gpus all; else reinstall the driver"
        return warn("driver", f"nvidia-smi fails: {smi.error}", fix)
    if smi.gpus:
        return ok("driver", f"NVIDIA {smi.driver}: {_named(smi.gpus)}")
    if smi.present:
        return warn("driver", "nvidia-smi shows no GPU", "in a container start it with --gpus all")
    if _nvidia_card():
        fix = "install the NVIDIA driver; in a container start it with --gpus all"
        return warn("driver", "there is an NVIDIA card and no nvidia-smi", fix)
    return ok("driver", "no NVIDIA GPU in this machine")


def device(torch: Torch, compute: Step, smi: Smi) -> Check:
    """What a run takes, having multiplied on it."""
    if compute.error:
        fix = f"free the device, or {CUDA_BUILD} that fits it; until then: trainer.accelerator=cpu"
        return fail("device", f"{_devices(torch)}: a matrix product fails: {compute.error}", fix)
    if torch.kind in ("cpu", "mps"):
        return _without_gpu(torch, smi)
    free = compute.facts["free"]
    found = f"{_devices(torch)}, {gib(min(free))} free"
    if len({gpu.name for gpu in torch.gpus}) > 1:
        return warn("device", f"{found}; all go at the pace of the slowest", "pick equal ones: CUDA_VISIBLE_DEVICES=0")
    if min(free) < min(gpu.bytes for gpu in torch.gpus) / 2:
        return warn("device", f"{found}: other processes hold the rest", "end them: nvidia-smi lists their ids")
    return ok("device", found)


def _without_gpu(torch: Torch, smi: Smi) -> Check:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.build == "CPU" or not (smi.gpus or torch.why_no_gpu):
        return ok("device", _devices(torch))
    if visible is not None and smi.gpus:
        found = f"{_devices(torch)}: CUDA_VISIBLE_DEVICES={visible!r} hides {_named(smi.gpus)}"
        return warn("device", found, "unset CUDA_VISIBLE_DEVICES")
    if not smi.gpus:
        return ok("device", f"{_devices(torch)}; this torch would take a GPU")
    fix = f"update the driver ({smi.driver}), or {CUDA_BUILD} made for an older one"
    return warn("device", f"{_devices(torch)}: torch finds none of {_named(smi.gpus)}: {torch.why_no_gpu}", fix)


def bf16(torch: Torch) -> Check:
    """Whether the device computes in bfloat16 at speed, by the same rule as a run."""
    if torch.kind == "mps":
        return ok("bf16", "not counted on with Metal: fp16")
    if torch.kind == "cpu":
        flags = CPUINFO.read_text(errors="replace") if CPUINFO.exists() else ""
        fast = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
        note = f"this CPU has {' and '.join(fast)}: trainer.precision=bf16-mixed is fast" if fast else "no bf16 units"
        return ok("bf16", f"a CPU run takes fp32; {note}")
    if torch.kind == "rocm" or min(gpu.major for gpu in torch.gpus) >= 8:
        return ok("bf16", "yes")
    return ok("bf16", "no, older than Ampere: fp16")


def four_bit(step: Step) -> Check:
    """Whether bitsandbytes really quantises."""
    fix = f"until then method=lora; to mend it: {pip_install('bitsandbytes', options='--force-reinstall --no-deps')}"
    if step.error:
        return warn("bitsandbytes", f"method=qlora would not work: {step.error}", fix)
    facts = step.facts
    # NF4's widest gap is 0.30 of a block's largest value, so no element is off by more than half of that.
    if not facts["error"] < 0.2:
        return warn("bitsandbytes", f"method=qlora would not work: NF4 and back is off by {facts['error']:.2g}", fix)
    how = "its native library" if facts["native"] else "torch alone (native library not loaded: slower)"
    return ok("bitsandbytes", f"64x64 to NF4 and back on {facts['device']} with {how}")


def compiling(torch: Torch) -> Check:
    """What torch.compile needs: inductor compiles C++ on CPUs, triton a C launcher on GPUs."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    wanted = {compiler: compiler} if torch.kind == "cpu" else {"a C compiler": os.environ.get("CC") or "gcc"}
    lacking = [name for name, command in wanted.items() if shutil.which(command) is None]
    lacking += [] if _python_header().exists() else ["Python.h"]
    if not lacking:
        return ok("torch.compile", f"{', '.join(wanted.values())} and Python.h are there")
    return missing("torch.compile", f"lacks {' and '.join(lacking)}", _compilers())


def profiles() -> Iterator[Mapping[str, Any]]:
    """The facts of every hardware profile that comes with the package."""
    folder = resources.files("tuneforge.conf").joinpath("hardware")
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            yield read_yaml_file(file)


def profile_of(kind: str, name: str) -> str:
    """The profile that fits the device, by the rule of `machine.compare`; "" when none does."""
    fitting: list[tuple[int, str]] = []
    for facts in profiles():
        match = [part for part in facts["match"] if part in name.lower()]
        if facts["kind"] == kind and (match or not facts["match"]):
            fitting.append((max(map(len, match), default=0), facts["name"]))
    return max(fitting, default=(0, ""))[1]


def hardware(torch: Torch) -> Check:
    """The profile to name, and the command that does."""
    name = torch.gpus[0].name if torch.gpus else ""
    profile = profile_of(torch.kind, name)
    if profile:
        return ok("hardware", command(profile))
    return ok("hardware", f"{command('')} (no profile of {name!r}: hardware=auto reads it from the device)")


def command(profile: str) -> str:
    """The default job on this machine."""
    return "python -m tuneforge" + (f" hardware={profile}" if profile else "")


def _devices(torch: Torch) -> str:
    if not torch.gpus:
        return "Apple GPU" if torch.mps else f"CPU, {os.cpu_count()} cores, {torch.cpu_capability}"
    return f"{_named([gpu.name for gpu in torch.gpus])}, {gib(min(gpu.bytes for gpu in torch.gpus))}"


def _named(names: list[str] | tuple[str, ...]) -> str:
    unique = dict.fromkeys(names)
    return ", ".join(f"{names.count(n)} x {n}" if names.count(n) > 1 else n for n in unique)


def _nvidia_card() -> bool:
    """Whether a display controller (class 03) of NVIDIA (vendor 10de) is on the bus."""
    found = []
    for slot in PCI.iterdir() if PCI.is_dir() else ():
        vendor, kind = slot / "vendor", slot / "class"
        if vendor.is_file() and kind.is_file():
            found.append((vendor.read_text().strip(), kind.read_text()[:4]))
    return ("0x10de", "0x03") in found


def _python_header() -> Path:
    return Path(sysconfig.get_paths()["include"]) / "Python.h"


def _compilers() -> str:
    return system_install(f"g++ python3.{sys.version_info.minor}-dev", "gcc-c++ python3-devel")
