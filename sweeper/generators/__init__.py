"""Generators: off-the-shelf models that draw images of the dataset's classes. One kind a file.

A kind's module holds

    class Config(Settings)              `kind`, `max_ratio` and whatever decides an image
    identity(config) -> dict            what decides an image: plain JSON values, local weights by their sha256
    build(config, device) -> Generator
    flops_an_image(config, class_names) -> float | None     may be left out: for the forecast, without reading weights

`max_ratio` is the largest synthetic : real ratio that a trial may ask for. It is no part of the identity, because an
image depends on its label and its seed only: asking for more images later keeps those that exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


class Generator(Protocol):
    """Draws image i from `labels[i]` and `seeds[i]` alone: neighbours, order and batch size do not matter."""

    def generate(self, labels: Sequence[int], class_names: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """uint8 RGB images [B, H, W, 3].

        Args:
            labels: class indices into `class_names`, one an image.
            class_names: the dataset's classes.
            seeds: non-negative, below 2**63, one an image.

        Raises:
            InputError: the model can not draw these classes with this configuration.
        """
        ...
