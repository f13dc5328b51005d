"""Where a result came from: versions, machine, commit and command line, for `environment.json`.

Versions are read from the installed packages' metadata, so that nothing heavy is imported to ask for them.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sweeper.redact import redacted

PACKAGES = (
    *("sweeper", "ray", "torch", "torchvision", "timm", "open_clip_torch", "diffusers", "transformers", "optuna"),
    *("numpy", "pyarrow", "safetensors", "onnx", "onnxruntime"),
)


def environment(device: str) -> dict[str, Any]:
    """What one needs to know to repeat a run; `device` as `ledger.device_name` gives it."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "commit": commit(),
        "command": command_line(sys.argv),
    }


def command_line(arguments: list[str]) -> str:
    """The command as one would type it again; the program by its name, secrets left out."""
    return redacted(shlex.join([Path(arguments[0]).name, *arguments[1:]]))


def commit() -> str | None:
    """The commit of the source tree that runs, with `+changes` if it differs; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:  # site-packages inside somebody's repository is not ours
        return None
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    return head and head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
