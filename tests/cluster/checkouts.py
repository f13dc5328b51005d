"""The project as a user has it who brings it to a cluster."""

from __future__ import annotations

import shutil
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[2]


def checkout(folder: Path) -> Path:
    """The tracked parts that the cluster files mount, without what other tests write into the tree meanwhile."""
    ignore = shutil.ignore_patterns("__pycache__")
    mounts = yaml.safe_load((REPOSITORY / "cluster" / "aws.yaml").read_text())["file_mounts"]
    for name in [*(path for path in mounts.values() if not path.startswith("~")), "cluster"]:
        source = REPOSITORY / name
        folder.mkdir(exist_ok=True)
        shutil.copytree(source, folder / name, ignore=ignore) if source.is_dir() else shutil.copy(source, folder)
    return folder
