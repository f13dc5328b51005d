"""Finished retrainings of a run on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeper.files import write_atomically


class Outcomes:
    """One JSON file and one model folder each, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> dict[str, Any] | None:
        """The outcome of a retraining that has ended; None too where its files are not those that were written."""
        try:
            found: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_bytes())
            files: Mapping[str, str] = found.pop("files")
            is_whole = all(_sha256((self.folder / name / file).read_bytes()) == sum for file, sum in files.items())
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None
        return found if is_whole else None

    def put(self, name: str, outcome: Mapping[str, Any]) -> None:
        """Write the model first and the outcome last: an outcome that is there is whole."""
        files: Mapping[str, bytes] = outcome.get("model", {})
        for file, data in files.items():
            write_atomically(self.folder / name / file, data)
        kept = {key: value for key, value in outcome.items() if key != "model"}
        kept["files"] = {file: _sha256(data) for file, data in files.items()}
        write_atomically(self.folder / f"{name}.json", json.dumps(kept, sort_keys=True).encode())

    def model(self, name: str) -> dict[str, bytes]:
        """The exported files of a retraining's student."""
        paths = sorted((self.folder / name).iterdir())  # hidden ones are what a kill left half-written
        return {path.name: path.read_bytes() for path in paths if not path.name.startswith(".")}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
