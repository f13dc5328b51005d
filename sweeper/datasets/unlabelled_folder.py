"""A folder of your own images without labels, for pre-training by distillation; every image below it counts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from sweeper.datasets import DatasetIndex, ImageSize, given_path, image_folder, refusing
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
    root = given_path(config.root, where)
    with refusing(where):
        image_folder.check_root(root, where, "give a folder of images")
        found = list(image_folder.images_below(root, config.extensions))
    files = sorted(found, key=lambda file: file.relative_to(root).as_posix())
    if len(files) < 2:
        raise InputError(f"{where}: {len(files)} images ({', '.join(config.extensions)}); a pool needs at least 2")
    sample_ids = [image_folder.relative_name(file, root, where) for file in files]
    sources = [str(file.absolute()) for file in files]
    with ThreadPoolExecutor(image_folder.HASH_THREADS) as threads:
        digests = list(threads.map(image_folder.digest, sources))
    return DatasetIndex(
        class_names=(),
        sample_ids=sample_ids,
        labels=np.zeros(len(files), dtype=np.int64),
        splits=["train"] * len(files),
        sources=sources,
        content=fingerprint({"unlabelled": list(zip(sample_ids, digests, strict=True))}),
    )


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """RGB images in the order of `sources` (absolute paths); an unreadable one is its exception."""
    return [image_folder.decode_file(source) for source in sources]
