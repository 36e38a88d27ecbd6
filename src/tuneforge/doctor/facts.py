"""What the libraries and the driver say of this machine, gathered without importing any of them here."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tuneforge.doctor.check import first_line

MARK = "@tuneforge.doctor "
"""Starts the lines of the probe that are meant for us."""
IMPORT = "import:"
"""A step that imports one module."""
TRIALS = ("torch", "compute", "nf4", "gloo")
"""The probe's other steps, in order. Named here so that no import leads from the command line to the probe's torch."""
PROBE_SECONDS = 300
"""A first import of torch from a network disk takes minutes; a hung driver takes for ever."""
SMI_SECONDS = 30


@dataclass(frozen=True)
class Step:
    """How one step of the probe ended."""

    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    """One line; "" when the step went well."""


@dataclass(frozen=True)
class Gpu:
    """One device that torch lists."""

    name: str
    bytes: int
    major: int
    minor: int


@dataclass(frozen=True)
class Torch:
    """How torch was built, and the devices it sees."""

    version: str
    cuda: str | None
    hip: str | None
    mps: bool
    why_no_gpu: str
    """What torch says when a GPU build finds no GPU."""
    gpus: tuple[Gpu, ...]
    cpu_capability: str
    """The best vector instructions that torch uses on this CPU."""

    @property
    def build(self) -> str:
        """What it was built for."""
        return f"CUDA {self.cuda}" if self.cuda else f"ROCm {self.hip}" if self.hip else "CPU"

    @property
    def kind(self) -> str:
        """The kind of device that a run takes, in the words of the hardware profiles."""
        if self.gpus:
            return "rocm" if self.hip else "cuda"
        return "mps" if self.mps else "cpu"


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi answers."""

    present: bool
    """Whether there is such a command."""
    gpus: tuple[str, ...] = ()
    driver: str = ""
    error: str = ""


def torch_of(steps: dict[str, Step]) -> Torch | None:
    """The facts about torch; None when it could not be asked."""
    step = steps["torch"]
    if step.error:
        return None
    gpus = tuple(Gpu(**gpu) for gpu in step.facts["gpus"])
    return Torch(**{**step.facts, "gpus": gpus})


def ask_libraries(modules: Sequence[str]) -> dict[str, Step]:
    """Import the modules and gather the facts in child processes; every step has a result whatever dies on the way."""
    todo = [*(IMPORT + module for module in modules), *TRIALS]
    done: dict[str, Step] = {}
    while todo:
        output, ending = _child(todo)
        ended, running = _read(output)
        done |= ended
        if running:
            done[running] = Step(error=ending)
        todo = [step for step in todo if step not in done]
        # A step that ended its process is left out of the next one; without an answer there is no use in going on.
        if not (ended or running) or ending.startswith("no answer"):
            done |= {step: Step(error=f"not tried: {ending}") for step in todo}
            break
    return done


def _child(steps: Sequence[str]) -> tuple[str, str]:
    """The output of one child, and in one line how it ended."""
    command = [sys.executable, "-m", "tuneforge.doctor.probe", *steps]
    try:
        ran = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired as expired:
        return (expired.stdout or b"").decode(errors="replace"), f"no answer in {PROBE_SECONDS} s"
    how = f"exit code {ran.returncode}"
    if ran.returncode < 0:
        how = signal.Signals(-ran.returncode).name
    said = ran.stderr.decode(errors="replace").strip().splitlines()
    return ran.stdout.decode(errors="replace"), f"ended its process with {how}" + (f": {said[-1]}" if said else "")


def _read(output: str) -> tuple[dict[str, Step], str]:
    """The steps that ended, and the one that had begun but not ended."""
    ended: dict[str, Step] = {}
    running = ""
    for line in output.splitlines():
        if not line.startswith(MARK) or not line.endswith("}"):  # a line may be cut where the child died
            continue
        record = json.loads(line.removeprefix(MARK))
        running = record.get("begin", "")
        if "end" in record:
            error = first_line(record["error"]) if "error" in record else ""
            ended[record["end"]] = Step(record.get("facts", {}), error)
    return ended, running


def ask_smi() -> Smi:
    """Ask the NVIDIA driver, which knows of GPUs that this torch cannot use."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Smi(False)
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(query, capture_output=True, timeout=SMI_SECONDS, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        return Smi(True, error=first_line(str(error)))
    out = ran.stdout.decode(errors="replace")
    if ran.returncode:
        return Smi(True, error=first_line(out + "\n" + ran.stderr.decode(errors="replace")))
    rows = [[part.strip() for part in line.split(",")] for line in out.splitlines() if "," in line]
    return Smi(True, tuple(row[0] for row in rows), rows[0][-1] if rows else "")
