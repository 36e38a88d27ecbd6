"""A healthy CPU machine in a folder for the tests of the doctor, to be broken in one place."""

import argparse
import json
import os
import stat
from collections import namedtuple
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest

from tuneforge import doctor
from tuneforge.commands.doctor import run
from tuneforge.commands.request import Request
from tuneforge.doctor import device, host, packages
from tuneforge.doctor.check import GIB, Check
from tuneforge.doctor.facts import Step
from tuneforge.errors import Problem, TuneforgeError
from tuneforge.masking import masked_output

Usage = namedtuple("Usage", "total used free")
CPU = {
    "version": "2.13.0+cpu",
    "cuda": None,
    "hip": None,
    "mps": False,
    "why_no_gpu": "",
    "gpus": [],
    "cpu_capability": "AVX512",
}
H100 = {"name": "NVIDIA H100 80GB HBM3", "bytes": 79 * GIB, "major": 9, "minor": 0}
CUDA = CPU | {"version": "2.13.0", "cuda": "12.8"}


def request(*overrides: str, **flags: Any) -> Request:
    given = {"json": False, "rules": False, "base": None, "config_dir": [], "cfg": None, "package": None} | flags
    return Request("doctor", (), overrides, argparse.Namespace(**given))


@dataclass
class Said:
    """What one call of the verb answered."""

    code: int
    out: str
    problems: list[str]

    @property
    def checks(self) -> dict[str, Check]:
        return {c["name"]: Check(**c) for c in json.loads(self.out)["checks"]}


@dataclass
class Bench:
    """A healthy CPU machine in a folder, to be broken in one place."""

    root: Path
    patch: pytest.MonkeyPatch
    steps: dict[str, Step]
    capsys: pytest.CaptureFixture[str]

    def tool(self, name: str, script: str = "") -> Path:
        file = self.root / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
        return file

    def versions(self, **given: str | None) -> None:
        """Install other versions, or with None nothing; `_` stands for `-`."""
        real = metadata.version

        def version(name: str) -> str:
            key = name.replace("-", "_")
            if key in given and given[key] is None:
                raise metadata.PackageNotFoundError(name)
            return given.get(key) or real(name)

        self.patch.setattr(metadata, "version", version)

    def torch(self, **changes: Any) -> None:
        self.steps["torch"] = Step(self.steps["torch"].facts | changes)

    def free(self, size: int) -> None:
        self.patch.setattr(host.shutil, "disk_usage", lambda path: Usage(500 * GIB, 500 * GIB - size, size))

    def json(self, *overrides: str) -> dict[str, Check]:
        said = self.run(*overrides, json=True)
        failing = any(check.status == "fail" for check in said.checks.values())
        assert said.code == (2 if failing else 0)
        assert json.loads(said.out)["ok"] is not failing
        return said.checks

    def run(self, *overrides: str, **flags: Any) -> Said:
        self.capsys.readouterr()
        problems: list[Problem] = []
        try:
            with masked_output():
                code = run(request(*overrides, **flags))
        except TuneforgeError as error:
            code, problems = error.exit_code, error.problems
        captured = self.capsys.readouterr()
        assert captured.err == ""
        assert {p.code for p in problems} <= {"machine-not-ready"}
        return Said(code, captured.out, [str(p) for p in problems])


def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Replace all that the doctor looks at outside of our own code."""
    work = tmp_path / "work"
    for name in ("work", "bin", "pci", "shm", "cgroup", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(work)
    steps = {
        "torch": Step(CPU),
        "compute": Step({"free": [0]}),
        "nf4": Step({"device": "cpu", "native": True, "error": 0.1}),
        "gloo": Step({"built": True, "nccl": False}),
    }
    bench = Bench(tmp_path, monkeypatch, steps, capsys)
    monkeypatch.setattr(doctor, "ask_libraries", lambda modules: {f"import:{m}": Step() for m in modules} | steps)
    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING", "TUNEFORGE_", "CUDA_", "OMP_", "PYTORCH_"))]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "CXX", "CC", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("g++", "c++", "gcc", "clang++"):
        bench.tool(name)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(device, "_python_header", lambda: tmp_path / "Python.h")
    monkeypatch.setattr(device, "PCI", tmp_path / "pci")
    monkeypatch.setattr(host, "SHM", tmp_path / "shm")
    monkeypatch.setattr(host, "CGROUP", tmp_path / "cgroup")
    (tmp_path / "own_cgroup").write_text("0::/\n")
    monkeypatch.setattr(host, "OWN_CGROUP", tmp_path / "own_cgroup")
    memory = namedtuple("Memory", "total available")(32 * GIB, 20 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    bench.free(100 * GIB)
    bench.versions(**{part.package.replace("-", "_"): "99" for part in packages.PARTS})
    bench.versions(pyarrow="26.0.1", deepspeed="0.19.8", wandb="0.31.0", mlflow_skinny="3.7.0", kernels=None)
    return bench
