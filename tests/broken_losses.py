"""A loss that fails, for jobs that are sent to a lane: the process that unpickles its settings knows the kind then on.

It lies outside of `sweeper/losses/`, so that no user's file can name it, and the driver never registers it.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Literal

import torch

from sweeper import registry
from sweeper.losses import LossContext, LossInputs
from sweeper.registry import Settings

NEEDS: frozenset[str] = frozenset()
How = Literal["raise", "memory", "nan", "die"]


class Config(Settings):
    """`how` it fails, from step `after` on."""

    kind: Literal["broken"] = "broken"
    weight: float = 1.0
    how: How = "raise"
    after: int = 0

    def __reduce__(self) -> Any:
        return _arrive, (self.how, self.after)


def _arrive(how: How, after: int) -> Config:
    registry.kinds("losses")["broken"] = "A loss that fails."
    sys.modules["sweeper.losses.broken"] = sys.modules[__name__]
    return Config(how=how, after=after)


class Broken(torch.nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.step = config, 0

    def forward(self, inputs: LossInputs) -> torch.Tensor:
        self.step += 1
        if self.step <= self.config.after:
            return inputs.student_logits_BK.sum() * 0
        match self.config.how:
            case "raise":
                raise ValueError("three\nlines\nof reason")
            case "memory":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            case "die":
                os._exit(1)
        return inputs.student_logits_BK.sum() * float("nan")


def build(config: Config, context: LossContext) -> torch.nn.Module:
    return Broken(config)
