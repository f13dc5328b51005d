"""Weights without code: a model comes from safetensors, unless its user trusts the file.

A `.bin`, `.pth` or `.pt` file is a pickle. timm and diffusers read one where a folder or the hub has no safetensors;
not in every case can they be told not to, and `torch.load` is what both call then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeper.errors import InputError

PICKLES = (".bin", ".pth", ".pt")
WAY_OUT = "save the weights as safetensors"
TRUST = f"{WAY_OUT}, or say `trust: true` beside them if you trust whoever made them"
_lock = threading.RLock()  # of two threads, the one that leaves last would leave the refusal behind


def local(given: str, config_file: str, *, trust: bool, allowed: str) -> Path:
    """The folder or file that `given` names, if weights can be read from it.

    Args:
        given: the setting `weights:`.
        config_file: what a folder has to hold besides.
        trust: also pickles.
        allowed: what could stand there, for the message.

    Raises:
        InputError: it is not there, not complete, or a pickle without `trust`.
    """
    path = Path(given).expanduser()
    if not path.exists():
        found = "does not exist"
    elif path.is_dir():
        if not (path / config_file).is_file():
            found = f"has no {config_file}"
        elif trust or any(path.glob("*.safetensors")):
            return path
        else:
            found = f"has no safetensors; {TRUST}"
    elif path.suffix == ".safetensors" or (trust and path.suffix in PICKLES):
        return path
    else:
        found = "is not a .safetensors file" + (f"; {TRUST}" if path.suffix in PICKLES else "")
    raise InputError(f"weights: {given!r} {found}; allowed: {allowed}")


@contextmanager
def safetensors_only(what: str, way_out: str = TRUST) -> Iterator[None]:
    """Inside, `torch.load` is refused.

    Args:
        what: the setting and its value, for the message.

    Raises:
        InputError: whoever loads a model inside had found a pickle.
    """
    import torch

    def refuse(*_: Any, **__: Any) -> Any:
        raise InputError(f"{what}: the weights are a pickle, which could run code; {way_out}")

    with _lock:
        allowed = torch.load
        torch.load = refuse
        try:
            yield
        finally:
            torch.load = allowed
