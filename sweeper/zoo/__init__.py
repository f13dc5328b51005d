"""The embedded default's weights: two teachers and a generator, pre-trained on the digits' foundation pool.

`make.py` trains them, `figures.json` records how and how well, `README.md` says what they are. A space file names one
as `zoo:NAME`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from sweeper.errors import InputError

PREFIX = "zoo:"
ROOT = Path(__file__).parent


def names() -> list[str]:
    """What can stand after `zoo:`."""
    return sorted(path.name for path in ROOT.iterdir() if path.is_dir() and any(path.glob("*.json")))


def resolve(name: str) -> Path:
    """The folder of a model, from its name with or without `zoo:`.

    Raises:
        InputError: there is no such model; the message names the nearest one.
    """
    known = names()
    wanted = name.removeprefix(PREFIX)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, n=1)
        hint = f"; did you mean {PREFIX + near[0]!r}?" if near else ""
        raise InputError(f"{name!r} is not in the zoo{hint} (allowed: {', '.join(PREFIX + k for k in known)})")
    return ROOT / wanted
