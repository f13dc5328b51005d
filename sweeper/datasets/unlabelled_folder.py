"""A folder of your own images without labels, for pre-training by distillation; every image below it counts.

It may be a URI (`s3://bucket/prefix`), as in `image_folder`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from sweeper.datasets import DatasetIndex, ImageSize, image_folder, refusing
from sweeper.datasets._folders import open_folder
from sweeper.errors import InputError
from sweeper.fingerprint import fingerprint
from sweeper.registry import Settings
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image


class Config(Settings):
    """`root` is the folder; sub-folders have no meaning. `extensions` as in `image_folder`."""

    kind: Literal["unlabelled_folder"] = "unlabelled_folder"
    root: Annotated[str, Field(min_length=1)]
    image_size: ImageSize = 32
    extensions: image_folder.Extensions = image_folder.EXTENSIONS


def index(config: Config, seed: int) -> DatasetIndex:
    """List and hash every image; all are for training, without classes.

    Raises:
        InputError: no such folder, or fewer than two images.
    """
    where = f"pools.root: {one_line(config.root)}"
    with refusing(where):
        folder = open_folder(config.root, config.extensions, where, "give a folder of images")
        sample_ids = sorted(folder.images_below())
    if len(sample_ids) < 2:
        raise InputError(f"{where}: {len(sample_ids)} images ({', '.join(config.extensions)}); a pool needs at least 2")
    with refusing(where):
        digests = folder.digests(sample_ids)
    return DatasetIndex(
        class_names=(),
        sample_ids=sample_ids,
        labels=np.zeros(len(sample_ids), dtype=np.int64),
        splits=["train"] * len(sample_ids),
        sources=list(map(folder.source, sample_ids)),
        content=fingerprint({"unlabelled": list(zip(sample_ids, digests, strict=True))}),
    )


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources`; an unreadable one is its exception."""
    return image_folder.decode_files(config.root, sources)
