"""What this process really runs on, and how that differs from the hardware profile of the config."""

import dataclasses
import os
from dataclasses import dataclass

import psutil
import torch

from tuneforge import rules
from tuneforge.console import warn
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.schema import Config
from tuneforge.schema.hardware import Hardware
from tuneforge.world import find_world

GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """One process's device, and its place among the others."""

    device: torch.device
    name: str
    memory_bytes: int
    """Memory of the device: a GPU's own, or the host's for a CPU run."""
    bf16: bool
    """Whether the device computes in bfloat16 at speed."""
    fp16: bool
    world_size: int = 1
    rank: int = 0
    num_nodes: int = 1
    """Machines, each with as many processes."""
    capability: float | None = None
    """NVIDIA's feature level; None for other devices."""
    holds_all: bool = True
    """The device has the memory for a copy of everything that the run needs."""
    tensor_parallel_size: int = 1
    """Neighbouring processes that compute each row together, and so read the same ones."""

    @property
    def kind(self) -> str:
        """cuda, mps or cpu."""
        return self.device.type

    @property
    def data_parallel_size(self) -> int:
        """Processes, or groups of them, that read different rows."""
        return self.world_size // self.tensor_parallel_size

    @property
    def data_parallel_rank(self) -> int:
        """Which of those this process is, or belongs to."""
        return self.rank // self.tensor_parallel_size


def present_machine(config: Config, group_size: int) -> Machine:
    """The present machine, with a warning where it differs from what the config expects.

    Args:
        config: the config.
        group_size: devices that compute a sequence together.

    Raises:
        TuneforgeError: the devices cannot be divided into such groups.
    """
    machine = detect(config)
    problem = rules.uneven_groups(machine.world_size, group_size)
    if problem is not None:
        raise TuneforgeError.of([problem])
    if config.trainer.activation_offload and machine.kind != "cuda":
        why = f"has no effect in this run: activations are in the memory of the {machine.kind} device's host already"
        warn(Problem("no-effect", why, "trainer.activation_offload"))
    difference = compare(config.hardware, machine)
    if difference:
        warn(difference)
    return dataclasses.replace(machine, tensor_parallel_size=group_size)


def detect(config: Config) -> Machine:
    """The device this process gets.

    Raises:
        TuneforgeError: `trainer.accelerator` names a kind that is not there.
    """
    wanted = config.trainer.accelerator
    present = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = present if wanted == "auto" else wanted
    if kind not in ("cpu", present):
        raise TuneforgeError(
            "no-such-device",
            f"is {wanted!r} and torch finds no such device here (it finds {present})",
            path="trainer.accelerator",
            fix="drop the key, or install a torch build for the device",
        )
    world = find_world()
    place = (world.size, world.rank, world.num_nodes)
    if kind == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise _too_few_gpus(world.local_size)
        device = torch.device("cuda", world.local_rank)
        facts = torch.cuda.get_device_properties(device)
        # A ROCm build numbers AMD's own generations, which compare with nothing.
        level = None if torch.version.hip else facts.major + facts.minor / 10
        return Machine(device, facts.name, facts.total_memory, facts.major >= 8, True, *place, level)
    memory = psutil.virtual_memory().total
    if kind == "mps":
        return Machine(torch.device("mps"), "Apple GPU", memory, False, True, *place)
    return Machine(torch.device("cpu"), f"CPU, {os.cpu_count()} cores", memory, False, False, *place)


def _too_few_gpus(processes: int) -> TuneforgeError:
    return TuneforgeError(
        "too-few-gpus",
        f"{processes} processes are on this machine, and this one sees {torch.cuda.device_count()} GPUs",
        path="trainer.devices",
        fix="start one for each GPU; under SLURM ask for --gpus-per-node=N, so that each task sees all of them",
    )


def is_present(hardware: Hardware, machine: Machine) -> bool:
    """Whether this machine's device is the one that the profile describes."""
    same_kind = hardware.kind == machine.kind or (hardware.kind, machine.kind) == ("rocm", "cuda")
    return same_kind and (not hardware.match or any(m in machine.name.lower() for m in hardware.match))


def compare(hardware: Hardware, machine: Machine) -> str:
    """One line that says how this machine differs from the profile; "" when it does not.

    Raises:
        TuneforgeError: it differs and `hardware.require` is set.
    """
    if hardware.kind == "auto" or is_present(hardware, machine):
        return ""
    profile = f"{hardware.vram_gb:g} GB, " if hardware.vram_gb else ""
    best = "bf16" if "bf16" in hardware.precisions else hardware.precisions[-1] if hardware.precisions else "fp32"
    line = (
        f"hardware={hardware.name} ({profile}{best}) is not here: running on {machine.name} "
        f"({machine.memory_bytes / GIB:.0f} GB, {'bf16' if machine.bf16 else 'fp16' if machine.fp16 else 'fp32'}), "
        "planning for the lesser memory of the two" + ("" if machine.kind == "cuda" else ", optimizer states not paged")
    )
    if hardware.require:
        raise TuneforgeError(
            "wrong-hardware", line, path="hardware", fix="run it on that device, or drop hardware.require=true"
        )
    return line


def usable_bytes(hardware: Hardware, machine: Machine) -> int:
    """Memory to plan a run for: the lesser of the profile's and the device's."""
    profile = int(hardware.vram_gb * GIB) if hardware.vram_gb else machine.memory_bytes
    return min(profile, machine.memory_bytes)
