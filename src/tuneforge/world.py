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
        return _even(_of_torchrun(os.environ))
    # Not SLURM_NTASKS, which a batch script has too, where only srun starts several processes.
    if "SLURM_STEP_NUM_TASKS" in os.environ and _number(os.environ, "SLURM_STEP_NUM_TASKS") > 1:
        return _even(_of_slurm(os.environ))
    return World()


def is_main_process() -> bool:
    """Whether this process is the one that prints and writes: the first, or the only one.

    A process whose launcher's variables are incomplete prints too: that is an error, which someone must see.
    """
    alone = os.environ.get("WORLD_SIZE") == "1" or any(name not in os.environ for name in TORCHRUN)
    return alone or os.environ["RANK"] == "0"


def restarts() -> int:
    """How often torchrun has started this run again after a process failed (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _of_torchrun(given: Mapping[str, str]) -> World:
    if given.get("WORLD_SIZE") == "1":
        return World()
    missing = [name for name in TORCHRUN if name not in given]
    if missing:
        raise TuneforgeError(
            "incomplete-launcher",
            f"RANK={given['RANK']} is in the environment, as of one of several processes, and {', '.join(missing)} not",
            fix="start it with torchrun or srun (docs/distributed.md), or alone: unset RANK",
        )
    rank, size, local_rank, local_size = (_number(given, name) for name in TORCHRUN[:4])
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise _unreadable(f"RANK={rank} of WORLD_SIZE={size}, LOCAL_RANK={local_rank} of LOCAL_WORLD_SIZE={local_size}")
    return World(rank, size, local_rank, local_size, given["MASTER_ADDR"], _number(given, "MASTER_PORT"))


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
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", text):
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


def _even(world: World) -> World:
    if world.size % world.local_size:
        raise _uneven(f"{world.local_size} here, of {world.size}")
    return world


def _uneven(counts: str) -> TuneforgeError:
    return TuneforgeError(
        "uneven-machines",
        f"machines have different numbers of processes: {counts}",
        fix="start as many on each: torchrun --nproc-per-node=N, or srun --ntasks-per-node=N",
    )
