"""This process's place among those of its run, as torchrun, SLURM or our own launcher put it into the environment."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tuneforge.errors import TuneforgeError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun gives each process. torch, Lightning and we read these alone, whoever started the processes."""
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
"""torchrun sets it to True: its agent, not the first process, listens at MASTER_PORT."""


@dataclass(frozen=True)
class World:
    """A process, and how many there are."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Processes on this machine, and on each of the others."""
    address: str = ""
    """Where the processes meet: the machine of the first."""
    port: int = 0

    @property
    def num_nodes(self) -> int:
        """Machines."""
        return self.size // self.local_size

    def variables(self) -> dict[str, str]:
        """The environment of this process, as torchrun gives it."""
        values = (self.rank, self.size, self.local_rank, self.local_size, self.address, self.port)
        return {**dict(zip(TORCHRUN, map(str, values), strict=True)), "GROUP_RANK": str(self.rank // self.local_size)}


def find_world() -> World:
    """The world that this process was started in; alone, where nothing was said of others.

    Raises:
        TuneforgeError: half of it is said, or machines have different numbers of processes.
    """
    if "RANK" in os.environ:
        return _checked(_of_torchrun(os.environ))
    # Not SLURM_NTASKS, which a batch script has too, where only srun starts several processes.
    if "SLURM_STEP_NUM_TASKS" in os.environ and _number(os.environ, "SLURM_STEP_NUM_TASKS") > 1:
        return _checked(_of_slurm(os.environ))
    # Each process of such a launcher would take itself for the only one.
    for name, alone in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        if os.environ.get(name, alone) != alone:
            raise _incomplete(os.environ, name)
    return World()


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: the first, or the only one.

    A process whose launcher's variables cannot be used prints too: that is an error, which someone must see.
    """
    try:
        return find_world().rank == 0
    except TuneforgeError:
        return True


def enter(world: World) -> None:
    """Give torch and Lightning, which read the environment too, the same world and no other."""
    if world.size > 1:
        os.environ.update(world.variables())
        return
    # Lightning would write no logs in a process of RANK=1, and torch would look for torchrun's agent.
    for name in (*TORCHRUN, AGENT_STORE):
        os.environ.pop(name, None)


def restarts() -> int:
    """How often torchrun has started this run again after a process failed (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _of_torchrun(given: Mapping[str, str]) -> World:
    if given.get("WORLD_SIZE") == "1":
        return World()
    if any(name not in given for name in TORCHRUN):
        raise _incomplete(given, "RANK")
    rank, size, local_rank, local_size = (_number(given, name) for name in TORCHRUN[:4])
    return World(rank, size, local_rank, local_size, given["MASTER_ADDR"], _number(given, "MASTER_PORT"))


def _incomplete(given: Mapping[str, str], name: str) -> TuneforgeError:
    missing = ", ".join(n for n in TORCHRUN if n not in given)
    return TuneforgeError(
        "incomplete-launcher",
        f"{name}={given[name]} is in the environment, as of one of several processes, and {missing} not",
        fix=f"start it with torchrun or srun (docs/distributed.md), or alone: unset {name}",
    )


def _number(given: Mapping[str, str], name: str) -> int:
    value = given.get(name, "")
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _unreadable(f"{name}={value!r}")
    return int(value)


def _unreadable(what: str) -> TuneforgeError:
    return TuneforgeError(
        "bad-launcher",
        f"{what} is in the environment, and no launcher would set it so",
        fix="start with torchrun or srun (docs/distributed.md), or alone: unset RANK and SLURM_STEP_NUM_TASKS",
    )


def _of_slurm(given: Mapping[str, str]) -> World:
    """srun's variables: https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES."""
    text = given.get("SLURM_STEP_TASKS_PER_NODE", "")
    if not re.fullmatch(r"\d{1,5}(\(x\d{1,5}\))?(,\d{1,5}(\(x\d{1,5}\))?)*", text):
        raise _unreadable(f"SLURM_STEP_TASKS_PER_NODE={text!r}")
    counts = tasks_per_node(text)
    if len(set(counts)) > 1:
        raise _uneven(", ".join(map(str, counts)))
    # One port for all processes of a step, and rarely that of another step on the same machine.
    port = 15000 + (_number(given, "SLURM_JOB_ID") + _number(given, "SLURM_STEP_ID")) % 10000
    return World(
        _number(given, "SLURM_PROCID"),
        _number(given, "SLURM_STEP_NUM_TASKS"),
        _number(given, "SLURM_LOCALID"),
        counts[0],
        given.get("MASTER_ADDR") or first_node(given.get("SLURM_STEP_NODELIST", "")),
        _number(given, "MASTER_PORT") if given.get("MASTER_PORT") else port,
    )


def tasks_per_node(text: str) -> list[int]:
    """SLURM's `2(x3),1` as `[2, 2, 2, 1]`."""
    found = []
    for part in text.split(","):
        count, _, times = part.partition("(x")
        found += [int(count)] * int(times.rstrip(")") or 1)
    return found


def first_node(nodes: str) -> str:
    """The first name of SLURM's `gpu[01-03,07],login`: gpu01."""
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^\[,]*)", nodes)
    assert found is not None
    return "".join(part or "" for part in found.groups())


def _checked(world: World) -> World:
    if world == World():
        return world
    rank, size, local_rank, local_size = world.rank, world.size, world.local_rank, world.local_size
    if not (rank < size and local_rank < local_size <= size):
        raise _unreadable(f"rank {rank} of {size} processes, {local_rank} of {local_size} on this machine,")
    if not (world.address and 0 < world.port < 1 << 16):
        raise _unreadable(f"MASTER_ADDR={world.address!r} with MASTER_PORT={world.port}")
    if size % local_size:
        raise _uneven(f"{world.local_size} here, of {world.size}")
    return world


def _uneven(counts: str) -> TuneforgeError:
    return TuneforgeError(
        "uneven-machines",
        f"machines have different numbers of processes: {counts}",
        fix="start as many on each: torchrun --nproc-per-node=N, or srun --ntasks-per-node=N",
    )
