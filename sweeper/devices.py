"""How fast devices are that are not here: what their vendors' data sheets promise, and the share of it that is reached.

Only a stand-in for measuring (`calibration`): what a small model reaches depends on the model more than on the device.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# Peak of 32-bit floats without tensor cores, operations a second, by NVIDIA's data sheets (SXM forms where there are
# several; A10G as A10, of which it is a variant for one cloud). Students train in fp32 by default; bf16 counts alike.
PEAK_FLOPS = {
    "T4": 8.1e12,
    "V100": 15.7e12,
    "A10": 31.2e12,
    "A10G": 31.2e12,
    "L4": 30.3e12,
    "L40S": 91.6e12,
    "A100": 19.5e12,
    "H100": 67e12,
    "H200": 67e12,
}
REACHED_SHARE = 0.2  # of the peak, by forwards and backwards of small models: an assumption, and not measured
# One thread of a 2025 server core: 19 to 27 GFLOP/s training the students of search_spaces/ (benchmarks/README.md).
RATE_CPU_FLOPS = 2e10
RATE_UNKNOWN_GPU_FLOPS = 1e13  # assumed, too


@dataclass(frozen=True)
class Slot:
    """What a training holds: a CPU slot, or a GPU.

    Attributes:
        device: as `ledger.device_name` gives it where it is here; else what a cluster file calls it.
        is_here: whether models can be timed on it.
        flops: operations a second, where nothing is measured.
        basis: where that figure comes from, for people.
    """

    device: str
    is_here: bool
    flops: float
    basis: str

    @property
    def processor(self) -> str:
        """`CPU` or `GPU`."""
        return "CPU" if self.device == "cpu" else "GPU"


def slot(device: str, *, is_here: bool) -> Slot:
    """The slot of a device by its name: `cpu`, or whatever names a GPU."""
    if device == "cpu":
        return Slot(device, is_here, RATE_CPU_FLOPS, f"{RATE_CPU_FLOPS / 1e9:g} GFLOP/s a CPU slot")
    known = next((name for name in PEAK_FLOPS if name in _words(device)), None)
    if known is None:
        return Slot(device, is_here, RATE_UNKNOWN_GPU_FLOPS, f"{RATE_UNKNOWN_GPU_FLOPS / 1e12:g} TFLOP/s, assumed")
    peak = PEAK_FLOPS[known]
    basis = f"an assumed {REACHED_SHARE:.0%} of the peak in {known}'s data sheet, {peak / 1e12:g} TFLOP/s"
    return Slot(device, is_here, REACHED_SHARE * peak, basis)


def price(device: str, prices: Mapping[str, float]) -> float | None:
    """What an hour costs on a device, by the first key that is a word of its name, in capitals or not."""
    return next((dollars for name, dollars in prices.items() if name.upper() in _words(device)), None)


def _words(device: str) -> set[str]:
    return set(re.split(r"[^A-Za-z0-9]+", device.upper()))


@cache
def cpu_name() -> str:
    """The processor's own name, as Linux tells it; elsewhere its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"cpu {named or platform.machine()}"
