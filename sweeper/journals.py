"""Files of JSON that are appended to line by line, and what a crash leaves at their end."""

from __future__ import annotations

import json
from pathlib import Path

from sweeper.errors import RunFailed
from sweeper.files import write_atomically

STUDY_JOURNAL = "journal.log"  # in a run's folder; optuna-dashboard reads it


def mend(path: Path) -> None:
    """Leave of a journal its good lines, each once, up to the damage at its end; nothing happens where there is none.

    A kill tears the last line, and the next one would be glued to it. A loss of power may leave zeros or garbage after
    what was written last, and a copy or a network filesystem lines that stand there twice: no two that sweeper or
    Optuna write are equal and mean two things.

    Raises:
        RunFailed: a damaged line with good ones after it. What it said is lost, and those may build on it.
    """
    data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")[:-1]  # what stands after the last line's end is torn
    are_good = [_is_good(line) for line in lines]
    kept = len(lines) - (are_good[::-1].index(True) if True in are_good else len(lines))
    if not all(are_good[:kept]):
        number = are_good.index(False) + 1
        raise RunFailed(f"{path}:{number}: damaged, with good lines after it; restore it, or remove it to begin anew")
    mended = b"".join(line + b"\n" for line in dict.fromkeys(lines[:kept]))
    if mended != data:
        write_atomically(path, mended)


def _is_good(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
