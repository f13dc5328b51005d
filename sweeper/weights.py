"""Weights without code: a model comes from safetensors, unless its user trusts the file.

A `.bin`, `.pth` or `.pt` file is a pickle. timm and diffusers read one where a folder or the hub has no safetensors;
not in every case can they be told not to, and `torch.load` is what both call then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sweeper.errors import InputError

PICKLES = (".bin", ".pth", ".pt")
WAY_OUT = "save the weights as safetensors"
TRUST = f"{WAY_OUT}, or say `trust: true` beside them if you trust whoever made them"
_lock = threading.RLock()  # of two threads, the one that leaves last would leave the refusal behind


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
