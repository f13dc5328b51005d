"""A loss that fails, for jobs that are sent to a lane: the process that unpickles its settings knows the kind then on.

It lies outside of `sweeper/losses/`, so that no user's file can name it; this process knows it inside `known`.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from sweeper import registry
from sweeper.losses import LossContext, LossInputs, LossSettings
from sweeper.losses._module import Float32Loss

NEEDS = frozenset({"logits"})
How = Literal["raise", "memory", "nan", "die", "hang"]


class Config(LossSettings):
    """`how` it fails, from step `after` on; `once`: a file that is made then, and while it is there nothing fails."""

    kind: Literal["broken"] = "broken"
    how: How = "raise"
    after: int = 0
    once: str = ""

    def __reduce__(self) -> Any:
        return _arrive, (self.how, self.after, self.once)


def _arrive(how: How, after: int, once: str) -> Config:
    registry.kinds("losses")["broken"] = "A loss that fails."
    sys.modules["sweeper.losses.broken"] = sys.modules[__name__]
    return Config(how=how, after=after, once=once)


@contextmanager
def known() -> Iterator[None]:
    """This process knows the kind during the block."""
    _arrive("raise", 0, "")
    yield
    del registry.kinds("losses")["broken"]


def build(config: Config, context: LossContext) -> Float32Loss:
    steps = iter(range(10**9))

    def formula(_: nn.Module, inputs: LossInputs) -> torch.Tensor:
        if next(steps) < config.after or (config.once and os.path.exists(config.once)):
            return inputs.student_logits_BK.sum() * 0
        if config.once:
            open(config.once, "x").close()
        match config.how:
            case "raise":
                raise ValueError("three\nlines\nof reason")
            case "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            case "die":
                os._exit(1)
            case "hang":
                time.sleep(3600)
        return inputs.student_logits_BK.sum() * float("nan")

    return Float32Loss(formula)
