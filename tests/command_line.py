"""`sweeper` as its user starts it: a process of its own in a folder of its own, with its output in pipes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sweeper.session import DRIVER_ENVIRONMENT, WORKER_ENVIRONMENT

REPOSITORY = Path(__file__).parents[1]
PATIENCE_S = 600.0  # a deadline on a loaded machine, not a duration
# A shell's background job ignores SIGINT, and so would what it starts: tests that run as one press Ctrl-C all the same.
VERB = """import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from sweeper.cli import main
main(prog_name="sweeper")"""
# A control character, or what Ray and Python's warnings write; sweeper itself never names Ray while all goes well.
NOISE = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\bray|\.cc:\d|\bpid=|warning|deprecat|traceback", re.IGNORECASE)


def environment() -> Mapping[str, str]:
    """This process's, without what the shared Ray session set in it; one thread a process, as in all tests."""
    ours = {*DRIVER_ENVIRONMENT, *WORKER_ENVIRONMENT, "SWEEPER_STORE", "RAY_ADDRESS", "COLUMNS", "PYTHONPATH"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return {**kept, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def start(
    folder: Path, *arguments: str, code: str = VERB, more: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[str]:
    """Start it, in a process group of its own, so that it can be sent what a terminal's Ctrl-C sends.

    Args:
        more: of its environment.
    """
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**environment(), **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_to(process: subprocess.Popen[str], pattern: str) -> str:
    """Its output up to a line that matches."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if re.search(pattern, line):
            return read
    raise AssertionError(f"it ended without {pattern!r}:\n{read}\n{process.communicate()[1]}")


def finish(process: subprocess.Popen[str], patience_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Wait for its end."""
    try:
        out, err = process.communicate(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def sweeper(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return finish(start(folder, *arguments))


def wait_until(what: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    """The first true value of `what`."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found
