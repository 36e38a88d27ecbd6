"""doctor, the machine: devices, drivers, compilers, disks, memory, sockets; each fault named with its mending."""

import os
import socket
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import constants

from doctor_bench import CUDA, H100, Bench, Usage, make_bench
from tuneforge.doctor import device, facts, host
from tuneforge.doctor.check import GIB, MIB
from tuneforge.doctor.facts import Step


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    return make_bench(tmp_path, monkeypatch, capsys)


# ---- devices


def test_a_cpu_build_beside_a_gpu_is_the_classic_fault(bench: Bench) -> None:
    bench.tool("nvidia-smi", 'echo "NVIDIA GeForce RTX 4090, 580.65.06"')
    checks = bench.json()
    assert checks["driver"].found == "NVIDIA 580.65.06: NVIDIA GeForce RTX 4090"
    assert checks["torch"].status == "warn"
    assert "built for CPU, and nvidia-smi shows NVIDIA GeForce RTX 4090" in checks["torch"].found
    assert "CUDA build of torch, see pytorch.org/get-started" in checks["torch"].fix
    assert "pip install" in checks["torch"].fix


def test_a_broken_driver_is_told_in_its_own_words(bench: Bench) -> None:
    bench.tool("nvidia-smi", 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    check = bench.json()["driver"]
    assert (check.status, "version mismatch" in check.found, "reboot" in check.fix) == ("warn", True, True)


def test_a_driver_that_hangs_is_told(bench: Bench) -> None:
    bench.patch.setattr(facts, "SMI_SECONDS", 0.2)
    bench.tool("nvidia-smi", "exec /bin/sleep 20")
    assert "timed out" in bench.json()["driver"].found


def test_a_card_without_a_driver_is_told(bench: Bench) -> None:
    for slot, vendor, kind in (("0", "0x10de", "0x0c0330"), ("1", "0x8086", "0x030000")):
        (bench.root / "pci" / slot).mkdir()
        (bench.root / "pci" / slot / "vendor").write_text(f"{vendor}\n")
        (bench.root / "pci" / slot / "class").write_text(f"{kind}\n")
    assert bench.json()["driver"].status == "ok"
    (bench.root / "pci" / "0" / "class").write_text("0x030200\n")
    check = bench.json()["driver"]
    assert (check.status, "--gpus all" in check.fix) == ("warn", True)


def test_gpus_are_named_with_the_profile_that_fits(bench: Bench) -> None:
    bench.steps["torch"] = Step(CUDA | {"gpus": [H100, H100]})
    bench.steps["compute"] = Step({"free": [78 * GIB, 78 * GIB]})
    checks = bench.json()
    assert checks["device"].found == "2 x NVIDIA H100 80GB HBM3, 79.0 GB, 78.0 GB free"
    assert checks["bf16"].found == "yes"
    assert bench.run().out.splitlines()[-1].endswith(": python -m tuneforge hardware=h100")


def test_a_gpu_held_by_others_and_unlike_gpus_are_told(bench: Bench) -> None:
    bench.steps["torch"] = Step(CUDA | {"gpus": [H100]})
    bench.steps["compute"] = Step({"free": [2 * GIB]})
    assert "other processes" in bench.json()["device"].found
    bench.torch(gpus=[H100, H100 | {"name": "Tesla T4", "major": 7}])
    bench.steps["compute"] = Step({"free": [70 * GIB, 70 * GIB]})
    checks = bench.json()
    assert checks["device"].status == "warn"
    assert "CUDA_VISIBLE_DEVICES" in checks["device"].fix
    assert checks["bf16"].found.startswith("no")


def test_a_gpu_that_cannot_compute_fails(bench: Bench) -> None:
    bench.steps["torch"] = Step(CUDA | {"gpus": [H100]})
    bench.steps["compute"] = Step(error="RuntimeError: CUDA error: no kernel image is available")
    check = bench.json()["device"]
    assert (check.status, "no kernel image" in check.found) == ("fail", True)
    assert "trainer.accelerator=cpu" in check.fix


def test_a_hidden_gpu_is_told(bench: Bench) -> None:
    bench.steps["torch"] = Step(CUDA | {"why_no_gpu": "No CUDA GPUs are available"})
    bench.tool("nvidia-smi", 'echo "NVIDIA H100 80GB HBM3, 570.1"')
    check = bench.json()["device"]
    assert (check.status, "No CUDA GPUs" in check.found, "570.1" in check.fix) == ("warn", True, True)
    bench.patch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert bench.json()["device"].fix == "unset CUDA_VISIBLE_DEVICES"


def test_a_cuda_build_without_a_gpu_is_no_fault(bench: Bench) -> None:
    bench.steps["torch"] = Step(CUDA | {"why_no_gpu": "Found no NVIDIA driver on your system"})
    assert bench.json()["device"].status == "ok"


def test_an_apple_gpu_is_recognised(bench: Bench) -> None:
    bench.torch(mps=True)
    checks = bench.json()
    assert checks["device"].found == "Apple GPU"
    assert checks["hardware"].found == "python -m tuneforge hardware=mps"


@pytest.mark.parametrize(
    "step",
    [
        Step(error="RuntimeError: libbitsandbytes_cuda128.so"),
        Step({"device": "cpu", "native": True, "error": 0.9}),
        Step({"device": "cpu", "native": True, "error": float("nan")}),
    ],
)
def test_a_broken_quantiser_warns_that_qlora_would_not_work(bench: Bench, step: Step) -> None:
    bench.steps["nf4"] = step
    check = bench.json()["bitsandbytes"]
    assert (check.status, "method=qlora would not work" in check.found) == ("warn", True)


def test_no_compiler_is_told(bench: Bench) -> None:
    for name in ("g++", "c++", "clang++", "gcc"):
        (bench.root / "bin" / name).unlink()
    check = bench.json()["torch.compile"]
    assert check.status == "missing"
    assert "install" in check.fix


def test_no_python_headers_are_told(bench: Bench) -> None:
    (bench.root / "Python.h").unlink()
    assert "Python.h" in bench.json()["torch.compile"].found


@pytest.mark.parametrize(
    ("kind", "name", "profile"),
    [
        ("cuda", "NVIDIA GeForce RTX 4090", "rtx4090"),
        ("cuda", "NVIDIA A100-SXM4-40GB", "a100_40gb"),
        ("cuda", "NVIDIA A100 80GB PCIe", "a100_80gb"),
        ("cuda", "NVIDIA H200", "h200"),
        ("rocm", "AMD Instinct MI300X", "mi300x"),
        ("cuda", "NVIDIA H100 PCIe", ""),
        ("mps", "", "mps"),
        ("cpu", "", "cpu"),
    ],
)
def test_the_profile_named_is_the_one_that_a_run_accepts(kind: str, name: str, profile: str) -> None:
    import torch

    from tuneforge.machine import Machine, compare
    from tuneforge.schema.hardware import Hardware

    assert device.profile_of(kind, name) == profile
    there = Machine(torch.device("cuda" if kind == "rocm" else kind), name, GIB, True, True)
    accepted = [f["name"] for f in device.profiles() if f["kind"] == kind and compare(Hardware(**f), there) == ""]
    assert accepted == ([profile] if profile else [])


# ---- the host


def test_a_folder_that_cannot_be_written_fails(bench: Bench) -> None:
    def refuse(**where: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(where["dir"]))

    bench.patch.setattr(host.tempfile, "TemporaryFile", refuse)
    said = bench.run()
    assert said.code == 2
    assert "outputs: cannot write into" in said.problems[0]
    assert "output_root=FOLDER" in said.problems[0]


def test_a_full_disk_fails_and_little_space_warns(bench: Bench) -> None:
    bench.free(100 * MIB)
    checks = bench.json()
    assert (checks["outputs"].status, checks["hub cache"].status) == ("fail", "warn")
    assert "100 MB free" in checks["outputs"].found
    bench.free(3 * GIB)
    assert bench.json()["outputs"].status == "warn"


def test_a_file_and_a_dead_link_are_no_folder(bench: Bench) -> None:
    Path("outputs").write_text("")
    assert bench.json()["outputs"].status == "fail"
    assert bench.json("output_root=elsewhere")["outputs"].status == "ok"
    Path("outputs").unlink()
    Path("outputs").symlink_to(bench.root / "unmounted")
    assert "is a link" in bench.json()["outputs"].found


def test_looking_leaves_nothing_behind(bench: Bench) -> None:
    bench.run()
    assert list(Path.cwd().iterdir()) == []


def test_the_hub_cache_is_where_the_hub_puts_it() -> None:
    assert host.hub_folder().expanduser() == Path(constants.HF_HUB_CACHE)


def test_the_hub_cache_follows_the_environment(bench: Bench, tmp_path: Path) -> None:
    assert bench.json()["hub cache"].found.startswith(str(bench.root / "home" / ".cache" / "huggingface" / "hub"))
    bench.patch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert host.hub_folder() == tmp_path / "hf" / "hub"


def test_a_hub_cache_that_cannot_be_written_warns(bench: Bench) -> None:
    bench.patch.setattr(host.os, "access", lambda path, mode: False)
    check = bench.json()["hub cache"]
    assert (check.status, "HF_HOME" in check.fix) == ("warn", True)


def test_small_shared_memory_warns_with_the_docker_flag(bench: Bench) -> None:
    bench.patch.setattr(
        host.shutil,
        "disk_usage",
        lambda path: Usage(64 * MIB, 0, 64 * MIB) if path == host.SHM else Usage(GIB, 0, 100 * GIB),
    )
    check = bench.json()["shared memory"]
    assert (check.status, "64 MB" in check.found, "--shm-size=8g" in check.fix) == ("warn", True, True)


@pytest.mark.parametrize(
    ("own", "file", "text"),
    [
        ("0::/\n", "memory.max", f"{8 * GIB}\n"),
        ("0::/user/job\n", "user/memory.max", f"{8 * GIB}\n"),
        ("4:memory:/job\n1:cpu:/\n", "memory/job/memory.limit_in_bytes", f"{8 * GIB}\n"),
        ("4:cpu,memory:/job\n", "memory/memory.limit_in_bytes", f"{8 * GIB}\n"),
    ],
)
def test_a_container_with_less_memory_than_the_host_warns(bench: Bench, own: str, file: str, text: str) -> None:
    (bench.root / "own_cgroup").write_text(own)
    assert bench.json()["memory"].status == "ok"
    path = bench.root / "cgroup" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    check = bench.json()["memory"]
    assert (check.status, "8.0 GB by the container's limit" in check.found) == ("warn", True)
    assert "hardware.vram_gb=8" in check.fix
    path.write_text("max\n")
    assert bench.json()["memory"].status == "ok"


def test_little_memory_warns(bench: Bench) -> None:
    memory = namedtuple("Memory", "total available")(8 * GIB, 2 * GIB)
    bench.patch.setattr(psutil, "virtual_memory", lambda: memory)
    assert bench.json()["memory"].status == "warn"


def test_a_core_quota_warns_until_threads_are_set(bench: Bench) -> None:
    bench.patch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    (bench.root / "cgroup" / "cpu.max").write_text("max 100000\n")
    assert bench.json()["cores"].status == "ok"
    (bench.root / "cgroup" / "cpu.max").write_text("250000 100000\n")
    check = bench.json()["cores"]
    assert (check.status, check.fix) == ("warn", "export OMP_NUM_THREADS=2")
    assert "may use 2.5" in check.found
    bench.patch.setenv("OMP_NUM_THREADS", "2")
    assert bench.json()["cores"].status == "ok"


def test_few_open_files_warn(bench: Bench) -> None:
    import resource

    bench.patch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    check = bench.json()["open files"]
    assert (check.status, check.fix) == ("warn", "ulimit -n 4096")
    bench.patch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert bench.json()["open files"].status == "ok"


def test_no_loopback_and_no_gloo_warn(bench: Bench) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(1, "Operation not permitted")

    bench.patch.setattr(socket, "create_server", refuse)
    bench.steps["gloo"] = Step(error="RuntimeError: unable to resolve hostname")
    checks = bench.json()
    assert checks["loopback"].status == "warn"
    assert "strategy=single" in checks["loopback"].fix
    assert (checks["processes"].status, "GLOO_SOCKET_IFNAME" in checks["processes"].fix) == ("warn", True)
    bench.steps["gloo"] = Step({"built": False})
    assert "no gloo" in bench.json()["processes"].found


def test_a_sandbox_that_hides_a_file_is_a_finding(bench: Bench) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    bench.patch.setattr(host, "_cgroups", refuse)
    assert bench.json()["cores"].status == "warn"


def test_facts_survive_their_way_through_json() -> None:
    torch = facts.torch_of({"torch": Step(CUDA | {"gpus": [H100]})})
    assert torch is not None
    assert (torch.kind, torch.build, torch.gpus[0].name) == ("cuda", "CUDA 12.8", H100["name"])
    rocm = replace(torch, cuda=None, hip="6.4")
    assert (rocm.kind, rocm.build) == ("rocm", "ROCm 6.4")
