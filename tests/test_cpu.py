"""What a process that computes does with its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS = """
import ctypes, resource, sys, torch
from sweeper import cpu
PR_SET_THP_DISABLE = 41  # else a page is 4 KiB on one machine and 2 MiB on another
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
if sys.argv[1] == "kept":
    cpu.prepare(threads=1)

def step():
    return [torch.ones(2**19) for _ in range(40)]  # 2 MiB each, and all freed again

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, torch.get_num_threads())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_freed_memory_is_used_again() -> None:
    """Ten steps of 80 MiB: 20,480 pages of 4 KiB each time that the kernel gives them anew.

    By itself glibc raises its threshold with what is freed, and whether a block goes back is then a matter of what lies
    beside it; with a threshold that is given, here through the environment, it always does.
    """
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 2**10)}

    def pages(how: str) -> tuple[int, int]:
        command = [sys.executable, "-c", STEPS, how]
        told = subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout
        new, threads = map(int, told.split())
        return new, threads

    assert pages("kept") == (pytest.approx(0, abs=3000), 1)
    assert pages("given back")[0] == pytest.approx(204_800, rel=0.1)
