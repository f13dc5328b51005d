"""A Ray cluster of several nodes on this machine, and the lanes' processes on each of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from command_line import environment


@contextmanager
def running(code: str, log: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """A process of its own that makes the cluster: the tests' shared session stays as it is.

    Args:
        code: prints one line of JSON with the `address` once the cluster is up, and ends with its standard input.

    Yields:
        The process, and what it printed.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith('{"address"')), None)
        assert line is not None, log.read_text()
        yield process, json.loads(line)
        process.stdin.close()
        process.wait(timeout=120)


def lane_workers() -> dict[int, int]:
    """Parent (the raylet) of each of Ray Train's worker processes: Ray names a process after its actor."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "cmdline").read_bytes().decode(errors="replace")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if name.startswith("ray::") and "TrainWorker" in name:
            found[int(path.name)] = parent
    return found
