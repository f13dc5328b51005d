"""Where a process computes, and how on a CPU: with how many threads, and in memory that it keeps."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# glibc's mallopt(3): numbers of its parameters, and the most that the second one may be.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, LARGEST_BLOCK = 128 * 2**20, 32 * 2**20


def prepare(threads: int) -> None:
    """Compute with so many threads from now on, and keep memory that is freed for what is needed next.

    Left to itself glibc gives activations back to the kernel (how many is a matter of what lies beside them), and gets
    them for the next step as new pages that the kernel has to clear first: up to a third of the step of a MobileNetV2
    (benchmarks/README.md, "loop.py").
    Other C libraries are left as they are.
    """
    import torch

    torch.set_num_threads(threads)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def device_of_stage() -> torch.device:
    """Where a worker of a stage computes: on the GPU that Ray gave it, else with one thread of the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    prepare(threads=1)
    return torch.device("cpu")
