"""Unlabelled digits for pre-training by distillation: the images that the embedded teachers were trained on.

They stand in for the web-scale pool of a real teacher, and `count` of them for the part of it that a small student is
given (KDEP, He et al. 2022, used a tenth of ImageNet). No image of `digits` is among them.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from sweeper.datasets import DatasetIndex, ImageSize
from sweeper.datasets.digits import NUM_FOUNDATION, decode, foundation_rows, images_of
from sweeper.registry import Settings
from sweeper.views import counter_uniform

__all__ = ["Config", "decode", "index"]


class Config(Settings):
    """`count` of the 1,000 images; a larger draw contains a smaller one of the same seed."""

    kind: Literal["digits_pool"] = "digits_pool"
    count: Annotated[int, Field(ge=2, le=NUM_FOUNDATION)] = NUM_FOUNDATION
    image_size: ImageSize = 32


def index(config: Config, seed: int) -> DatasetIndex:
    """The pool's images, all of them for training, without classes."""
    rows = foundation_rows()
    rows = np.sort(rows[np.argsort(counter_uniform(seed, rows))][: config.count])
    return DatasetIndex(
        class_names=(),
        sample_ids=[f"digits-{row:04d}" for row in rows],
        labels=np.zeros(len(rows), dtype=np.int64),
        splits=["train"] * len(rows),
        sources=[f"digits:{row}" for row in rows],
        content=hashlib.sha256(images_of(rows).tobytes()).hexdigest(),
    )
