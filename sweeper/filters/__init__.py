"""Filters: judge generated images, so that one which does not show its class is drawn again. One kind a file.

A kind's module holds

    class Config(FilterSettings)        `kind`, `max_attempts` and whatever decides a verdict
    identity(config) -> dict            what decides a verdict: plain JSON values, local weights by their sha256
    build(config, device, class_names, teacher) -> Filter
    is_here(config) -> bool             may be left out: False where it needs the hub, so that rehearsals do without

A kind whose `Config` has a field `teacher` names one of the file's teachers, and is built with it, adapted to the task;
the others get None. Images are judged as they would be stored, which is as a student would see them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import Field

from sweeper.registry import Settings

if TYPE_CHECKING:
    import numpy as np


class FilterSettings(Settings):
    """What every kind has.

    `max_attempts`: drawings of one image at most. Its first one that passes is kept. Where none does, the one with the
    highest score is, so that every class has the images that were asked for; how many those are is counted and said.
    """

    max_attempts: Annotated[int, Field(ge=1, le=1000)] = 4


class Filter(Protocol):
    """Scores images one by one: neighbours and order do not matter, up to rounding.

    Attributes:
        least: the score with which an image passes.
    """

    least: float

    def scores(self, images_BHWC: np.ndarray, labels: Sequence[int]) -> np.ndarray:
        """float [B], more is better; the images are uint8 RGB squares, `labels` the classes that they should show."""
        ...
