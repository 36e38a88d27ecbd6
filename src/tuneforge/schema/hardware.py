"""What the machine is: facts from data sheets, never training choices."""

from dataclasses import dataclass, field
from typing import Literal

from tuneforge.schema.types import PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device: what a plan may count on, and how it is recognised."""

    name: str
    """The option's name, which is its file's."""
    kind: Literal["auto", "cuda", "rocm", "mps", "cpu"]
    """What drives the device; torch calls rocm devices cuda too. auto: whatever is there."""
    match: list[str] = field(default_factory=list)
    """Lower-case parts of torch's name for the device, any of which identifies it. Empty: any of the kind."""
    vram_gb: PositiveFloat | None = None
    """The device's own memory in GiB, which vendors call GB; torch sees 1 to 2 % less of it. null: the host's."""
    compute_capability: str | None = None
    """NVIDIA's feature level, as in "8.9" (developer.nvidia.com/cuda-gpus). null: not an NVIDIA device."""
    precisions: list[Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8"]] = field(default_factory=list)
    """Number types to compute in: its matrix units have them, or they are not slower than fp32."""
    bf16_tflops: PositiveFloat | None = None
    """Peak of dense bf16 matrix products with fp32 accumulation, in TFLOP/s; data sheets often print twice that, for
    sparse ones. What model FLOP utilisation is measured against."""
    bandwidth_gb_s: PositiveFloat | None = None
    """Peak bandwidth of that memory in 10^9 bytes a second, from the data sheet."""
    tdp_w: PositiveInt | None = None
    """Board power limit in watts, from the data sheet."""
    usd_per_hour: PositiveFloat | None = None
    """Typical price of one device on demand, in US dollars an hour; the file says from where and when."""
    require: bool = False
    """Refuse to run on another device than this one, instead of warning."""
