"""Random images in any number of classes, for rehearsals, throughput and the cost of data that is not here yet.

Each class has a colour and each image its own noise over it, so that a student can learn them and pixels differ. They
are drawn by a counter-based generator from (seed, sample), in whichever task decodes them: nothing is stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field, field_validator

from sweeper.datasets import SPLITS, DatasetIndex, ImageSize
from sweeper.fingerprint import fingerprint
from sweeper.registry import Settings
from sweeper.views import counter_uniform

MAX_IMAGES = 100_000_000
NOISE = 64  # grey levels to each side of the class's colour
Images = Annotated[int, Field(ge=1, le=MAX_IMAGES)]


class Config(Settings):
    """`train`, `val` and `test` images, the classes taking turns; `classes` is their number or their names.

    Without classes (0) all images are a pool of unlabelled ones, for `pools:`, `train` of them.
    """

    kind: Literal["noise"] = "noise"
    classes: Annotated[int, Field(ge=0, le=100_000)] | tuple[str, ...] = 10
    train: Images = 64
    val: Images = 32
    test: Images = 32
    image_size: ImageSize = 32

    @field_validator("classes")
    @classmethod
    def _are_several(cls, value: int | tuple[str, ...]) -> int | tuple[str, ...]:
        count = value if isinstance(value, int) else len(set(value))
        if count == 1 or (isinstance(value, tuple) and count < len(value)):
            raise ValueError(f"needs 0 or at least two classes, each with a name of its own; given {value!r}")
        return value

    @property
    def class_names(self) -> tuple[str, ...]:
        if isinstance(self.classes, tuple):
            return self.classes
        return tuple(f"class {number}" for number in range(self.classes))


def index(config: Config, seed: int) -> DatasetIndex:
    """Every class is in train where there are as many images; the splits differ."""
    names = config.class_names
    counts = (
        dict(zip(SPLITS, (config.train, config.val, config.test), strict=True)) if names else {"train": config.train}
    )
    numbers = np.concatenate([np.arange(count) for count in counts.values()])
    splits = [split for split, count in counts.items() for _ in range(count)]
    labels = numbers % len(names) if names else np.zeros(len(numbers), dtype=np.int64)
    ids = [f"{split}-{number}" for split, number in zip(splits, numbers.tolist(), strict=True)]
    return DatasetIndex(
        class_names=names,
        sample_ids=ids,
        labels=labels.astype(np.int64),
        splits=splits,
        sources=[f"{seed}:{row}:{label}" for row, label in enumerate(labels.tolist())],
        content=fingerprint({"noise": NOISE, "seed": seed, "classes": list(names), "counts": counts}),
    )


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images of `image_size`, in the order of `sources` (`seed:row:label`)."""
    return [_draw(config.image_size, *map(int, source.split(":"))) for source in sources]


def known_classes(config: Config) -> tuple[str, ...]:
    """The names of the classes, which no data decides."""
    return config.class_names


def _draw(size: int, seed: int, row: int, label: int) -> Image.Image:
    colour = NOISE + counter_uniform(seed, label, np.arange(3)) * (255 - 2 * NOISE)
    grain = counter_uniform(seed, row, np.arange(size * size * 3) + 3).reshape(size, size, 3)
    return Image.fromarray(np.rint(colour + (2 * grain - 1) * NOISE).astype(np.uint8))
