"""Generators: off-the-shelf models that draw images of the dataset's classes. One kind a file.

A kind's module holds

    class Config(Settings)              `kind`, `max_ratio`, `filter` and whatever decides an image
    identity(config) -> dict            what decides an image: plain JSON values, local weights by their sha256
    build(config, device) -> Generator
    starts_from_images(config) -> bool  may be left out: whether each image begins as a real one of its class
    wording(config, class_names) -> dict    may be left out: what decides an image besides `identity` and the classes'
                                        names, {} for nothing; InputError where the configuration has other classes
    stand_in(config, folder, num_classes) -> Config     may be left out: for a rehearsal, what is not on this disk
    flops_an_image(config, class_names) -> float | None     may be left out: for the forecast, without reading weights

`max_ratio` is the largest synthetic : real ratio that a trial may ask for, `filter` a `FilterConfig` or None. Neither
is part of the identity: an image depends on its label and its seed only, so that asking for more images later keeps
those that exist, and the plan adds to the key what decides which images are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Protocol

from pydantic import SerializeAsAny

from sweeper.registry import Settings
from sweeper.sections import of_family

if TYPE_CHECKING:
    import numpy as np

FilterConfig = Annotated[SerializeAsAny[Settings], of_family("filters")]


class Generator(Protocol):
    """Draws image i from `labels[i]`, `seeds[i]` and `starts[i]` alone: neighbours, order and batch size do not matter.

    Attributes:
        batch_size: images drawn at once; fewer cost as much.
    """

    batch_size: int

    def generate(
        self,
        labels: Sequence[int],
        class_names: Sequence[str],
        seeds: Sequence[int],
        starts: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """uint8 RGB images [B, H, W, 3].

        Args:
            labels: class indices into `class_names`, one an image.
            class_names: the dataset's classes.
            seeds: non-negative, below 2**63, one an image.
            starts: uint8 RGB [h, w, 3], one an image, exactly where `starts_from_images`.

        Raises:
            InputError: the model can not draw these classes with this configuration.
            RunFailed: it can not draw them here.
        """
        ...
