"""The machine around the device: disks, shared memory, memory, cores, open files, sockets."""

import importlib.util
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from tuneforge.doctor.check import GIB, MIB, Check, fail, gib, ok, pip_install, warn
from tuneforge.doctor.facts import Step

SHM = Path("/dev/shm")  # noqa: S108 - looked at, not written to
CGROUP = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def output_folder(root: Path) -> Check:
    """Whether runs can be written where they go: the folder is there or can be made, and has space."""
    where = root.resolve()
    fix = "make it writable, or write elsewhere: output_root=FOLDER"
    if root.is_symlink() and not root.exists():
        return fail("outputs", f"{root} is a link to {where}, which is not there", fix)
    present = _present(where)
    if not present.is_dir():
        return fail("outputs", f"{present} is a file, so {root} cannot be a folder", fix)
    try:
        # The mode bits do not know of read-only mounts, quotas and full inode tables; a file does.
        with tempfile.TemporaryFile(dir=present) as file:
            file.write(b"tuneforge")
            file.flush()
    except OSError as error:
        return fail("outputs", f"cannot write into {present}: {error.strerror or error}", fix)
    free = shutil.disk_usage(present).free
    found = f"{where}, {gib(free)} free"
    fix = "free some space, or write elsewhere: output_root=FOLDER"
    if free < 200 * MIB:
        return fail("outputs", f"{found}, and a run needs 200 MB", fix)
    return warn("outputs", f"{found}: little for checkpoints", fix) if free < 5 * GIB else ok("outputs", found)


def hub_cache() -> Check:
    """Where downloaded models go; the default job downloads none."""
    where = hub_folder().expanduser()
    present = _present(where.resolve())
    fix = "export HF_HOME=FOLDER on a disk with space"
    if not os.access(present, os.W_OK):
        return warn("hub cache", f"{where} cannot be written: model=hf downloads would fail", fix)
    free = shutil.disk_usage(present).free
    found = f"{where}, {gib(free)} free"
    return warn("hub cache", f"{found}: little for models", fix) if free < 5 * GIB else ok("hub cache", found)


def hub_folder() -> Path:
    """The folder as huggingface_hub picks it, which is not imported for that."""
    env = os.environ
    cache = Path(env.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(env.get("HF_HOME") or cache / "huggingface")
    return Path(env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or home / "hub")


def shared_memory() -> Check:
    """Space in /dev/shm, through which loader processes and ranks hand over tensors."""
    if not SHM.is_dir():
        return ok("shared memory", f"no {SHM} on this system")
    total = shutil.disk_usage(SHM).total
    if total >= GIB:
        return ok("shared memory", f"{SHM}, {gib(total)}")
    found = f"{SHM} has {gib(total)}: data.num_workers>0 and runs of several processes can die of bus errors"
    return warn(
        "shared memory", found, "docker run --shm-size=8g (or --ipc=host); else mount -o remount,size=8G /dev/shm"
    )


def memory() -> Check:
    """Memory of the host, and what the container lets this process have of it."""
    if importlib.util.find_spec("psutil") is None:
        return warn("memory", "not known without psutil", pip_install("psutil"))
    import psutil

    host = psutil.virtual_memory()
    limit = memory_limit()
    found = f"{gib(host.total)}, {gib(host.available)} free"
    if limit is not None and limit < host.total:
        found = f"{gib(limit)} by the container's limit, {gib(host.total)} in the host"
        # A run plans with the lesser of the profile's memory and what the operating system reports: the host's.
        fix = f"on a CPU tell the planner: hardware=cpu hardware.vram_gb={max(1, limit // GIB)}"
        return warn("memory", f"{found}; a run over the limit is killed without a word", fix)
    if host.available < 4 * GIB:
        return warn("memory", f"{found}: enough for small models only", "end other programs, or take a smaller model")
    return ok("memory", found)


def memory_limit() -> int | None:
    """The lowest memory limit of this process's cgroups in bytes; None without one."""
    limits = []
    for folder in _cgroups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _text(folder / name)
            limits += [int(text)] if text.isdigit() else []
    return min(limits, default=None)


def cores() -> Check:
    """Cores this process may use: torch starts a thread for each that it sees, and a quota is not seen."""
    seen = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    quota = cpu_quota()
    if quota is None or quota >= seen:
        return ok("cores", f"{seen}")
    found = f"{seen} visible, of which the container may use {quota:g}"
    if os.environ.get("OMP_NUM_THREADS"):
        return ok("cores", f"{found}; OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}")
    return warn("cores", f"{found}: too many threads crawl", f"export OMP_NUM_THREADS={max(1, int(quota))}")


def cpu_quota() -> float | None:
    """Cores that the container's quota amounts to; None without one."""
    quotas = []
    for folder in _cgroups("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def open_files() -> Check:
    """How many files a process may hold open."""
    if os.name == "nt":
        return ok("open files", "no such limit on this system")
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit in (-1, resource.RLIM_INFINITY):
        return ok("open files", "no limit")
    if limit >= 1024:
        return ok("open files", f"{limit}")
    return warn("open files", f"{limit}: loader processes and shards need more", "ulimit -n 4096")


def loopback() -> Check:
    """Whether this machine can talk to itself, which its processes do over TCP."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        fix = "allow TCP on 127.0.0.1 (firewall, sandbox): strategy=ddp needs it, strategy=single does not"
        return warn("loopback", f"127.0.0.1: {error.strerror or error}", fix)
    return ok("loopback", "a socket on 127.0.0.1 can be bound and reached")


def gloo(step: Step) -> Check:
    """Whether processes can exchange tensors without a GPU."""
    if step.error:
        fix = "name the interface: export GLOO_SOCKET_IFNAME=lo; the host's own name must resolve (/etc/hosts)"
        return warn("processes", f"gloo fails, so would several processes on a CPU: {step.error}", fix)
    if not step.facts["built"]:
        return warn("processes", "this torch has no gloo: strategy=ddp fails on CPUs", pip_install("torch"))
    return ok("processes", "gloo works" + (", NCCL is built in" if step.facts["nccl"] else ""))


def _present(path: Path) -> Path:
    """The path, or its nearest ancestor that is there."""
    return next(p for p in [path, *path.parents] if p.exists())


def _cgroups(controller: str) -> list[Path]:
    """The folders that limit this process, root included: version 2, then the controller's own of version 1.

    In a container of its own namespace the path is /, and the limit stands in the root.
    """
    found: list[Path] = []
    for line in _text(OWN_CGROUP).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            root = CGROUP / controller if controllers else CGROUP
            place = Path(path.lstrip("/"))
            found += [root / part for part in (place, *place.parents)]
    return found


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""
