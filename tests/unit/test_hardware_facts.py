"""conf/hardware: every file states facts in the schema's keys, and a device's name finds the right file."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuneforge.schema.check import check
from tuneforge.schema.hardware import Hardware
from tuneforge.schema.signature import read_signature

FOLDER = Path(__file__).parents[2] / "conf" / "hardware"
FILES = sorted(FOLDER.glob("*.yaml"))
KEYS = [f.name for f in dataclasses.fields(Hardware)]
GPUS = [path for path in FILES if path.stem not in ("auto", "cpu", "mps")]


def facts(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="ascii"))
    return loaded


def test_that_many_files() -> None:
    assert len(FILES) == 12
    assert len(GPUS) == 9


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_file_has_the_keys_of_the_schema_and_a_command(path: Path) -> None:
    node = facts(path)
    assert list(node) == KEYS
    assert path.read_text().splitlines()[0] == f"# python -m tuneforge hardware={path.stem}"
    assert node["name"] == path.stem
    assert [p for p in check({"hardware": node}).problems if p.path.startswith("hardware")] == []
    assert Hardware(**node).require is False
    assert all(part == part.lower() for part in node["match"])
    assert node["precisions"] == [p for p in ("fp32", "tf32", "fp16", "bf16", "fp8", "int8") if p in node["precisions"]]


@pytest.mark.parametrize("path", GPUS, ids=lambda p: p.stem)
def test_a_gpu_states_every_figure(path: Path) -> None:
    node = facts(path)
    assert node["match"]
    unstated = {key for key, value in node.items() if value is None}
    without_bf16 = {"bf16_tflops"} - ({"bf16_tflops"} if "bf16" in node["precisions"] else set())
    assert unstated == ({"compute_capability"} if node["kind"] == "rocm" else without_bf16)
    # fp8 matrix units came with compute capability 8.9; bf16 with 8.0.
    if node["kind"] == "cuda":
        assert ("bf16" in node["precisions"]) == (float(node["compute_capability"]) >= 8.0)
        assert ("fp8" in node["precisions"]) == (float(node["compute_capability"]) >= 8.9)
    sources = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert "https://" in sources


# The other route to a data sheet's peaks: units (SMs or CUs), dense bf16 multiply-adds a clock of each, boost clock in
# GHz; memory bus in bits, Gbit/s a pin.
SILICON = {
    "t4": (40, 0, 1.59, 256, 10),
    "rtx3090": (82, 256, 1.695, 384, 19.5),
    "rtx4090": (128, 256, 2.52, 384, 21),
    "l40s": (142, 512, 2.52, 384, 18),
    "a100_40gb": (108, 1024, 1.41, 5120, 2.43),
    "a100_80gb": (108, 1024, 1.41, 5120, 3.186),
    "h100": (132, 2048, 1.83, 5120, 5.23),
    "h200": (132, 2048, 1.83, 6144, 6.25),
    "mi300x": (304, 1024, 2.1, 8192, 5.2),
}


@pytest.mark.parametrize("path", GPUS, ids=lambda p: p.stem)
def test_peaks_agree_with_the_silicon(path: Path) -> None:
    units, operations, clock, bus, rate = SILICON[path.stem]
    assert (facts(path)["bf16_tflops"] or 0) == pytest.approx(units * operations * 2 * clock / 1e3, rel=0.02)
    assert facts(path)["bandwidth_gb_s"] == pytest.approx(bus / 8 * rate, rel=0.01)


@pytest.mark.parametrize("name", ["auto", "cpu", "mps"])
def test_what_is_read_from_the_machine_is_not_stated(name: str) -> None:
    node = facts(FOLDER / f"{name}.yaml")
    assert node["kind"] == name
    assert node["match"] == []
    assert {node[k] for k in ("vram_gb", "bf16_tflops", "bandwidth_gb_s", "tdp_w", "usd_per_hour")} == {None}


# Names as torch.cuda.get_device_name gives them. None: a machine that no file describes.
DEVICES = {
    "NVIDIA GeForce RTX 3090": "rtx3090",
    "NVIDIA GeForce RTX 4090": "rtx4090",
    "NVIDIA GeForce RTX 4080": None,
    "NVIDIA L40": None,
    "Tesla T4": "t4",
    "NVIDIA L40S": "l40s",
    "A100-SXM4-40GB": "a100_40gb",
    "NVIDIA A100-SXM4-40GB": "a100_40gb",
    "NVIDIA A100-PCIE-40GB": "a100_40gb",
    "NVIDIA A100-SXM4-80GB": "a100_80gb",
    "NVIDIA A100 80GB PCIe": "a100_80gb",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": None,
    "NVIDIA H200": "h200",
    "NVIDIA GH200 480GB": None,
    "AMD Instinct MI300X": "mi300x",
    "AMD Instinct MI325X": None,
}


@pytest.mark.parametrize(("device", "expected"), DEVICES.items())
def test_a_device_name_matches_one_file_or_none(device: str, expected: str | None) -> None:
    found = [p.stem for p in GPUS if any(part in device.lower() for part in facts(p)["match"])]
    assert found == ([expected] if expected else [])


def test_every_key_is_documented() -> None:
    fields = read_signature("tuneforge.schema.hardware.Hardware").fields
    assert list(fields) == KEYS
    assert all(len(option.doc) > 20 for option in fields.values())
