"""Rows of artifacts as dense arrays: what `mapped` keeps of a pool of images, of a split, and of a teacher's targets.

Shape letters: N samples, V stored views, P parameters of a view, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sweeper import views
from sweeper.mapped import Filled
from sweeper.sources import stored_columns

if TYPE_CHECKING:
    from sweeper.mapped import Arrays

Made = np.ndarray | Filled
SPLIT = ("images", "labels")
POOL = (*SPLIT, "keys", "num_real")
STREAMED = ("groups", "piece", "row", "labels", "keys", "num_real")


def pixels(column: pa.ChunkedArray, image_size: int) -> np.ndarray:
    """Raw HWC bytes of equally large images as N x C x H x W, uint8.

    Raises:
        ValueError: an image has another size.
    """
    images_NCHW = np.empty((len(column), 3, image_size, image_size), dtype=np.uint8)
    start = 0
    for chunk in column.cast(pa.large_binary()).chunks:
        _, offsets, data = chunk.buffers()
        edges = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
        if len(chunk):
            raw = np.frombuffer(data, dtype=np.uint8)[edges[0] : edges[-1]]
            images_BHWC = raw.reshape(len(chunk), image_size, image_size, 3)
            images_NCHW[start : start + len(chunk)] = images_BHWC.transpose(0, 3, 1, 2)
        start += len(chunk)
    return images_NCHW


def split(table: pa.Table, image_size: int) -> Arrays:
    """`SPLIT` of rows of an images artifact."""
    return {"images": pixels(table["image"], image_size), "labels": _labels(table)}


def of_split(images: pa.Table, name: str) -> pa.Table:
    """The rows of one split."""
    return images.filter(np.array(images["split"].to_pylist()) == name)


def in_order(synthetic: pa.Table) -> pa.Table:
    """Synthetic images by their index: the first so many are of all classes alike."""
    return synthetic.sort_by([("index", "ascending"), ("label", "ascending")])


def laid_out(index: pa.Table, files: Callable[[], Iterable[pa.Table]], image_size: int) -> dict[str, Made]:
    """`SPLIT` of images in the order of `index`, read file by file: their pixels are never in memory together.

    Args:
        index: `sample_id` and `label`.
        files: `sample_id` and `image` of all of them, and maybe of others, in any order.

    Raises:
        ValueError: an image has another size, or is missing.
    """
    ids = index["sample_id"].to_pylist()

    def fill(images_NCHW: np.ndarray) -> None:
        position, num_found = {sample_id: i for i, sample_id in enumerate(ids)}, 0
        for table in files():
            place = np.array([position.get(sample_id, -1) for sample_id in table["sample_id"].to_pylist()], dtype=int)
            rows = np.flatnonzero(place >= 0)
            images_NCHW[place[rows]] = pixels(table["image"].take(rows), image_size)
            num_found += len(rows)
        if num_found != len(ids):
            raise ValueError(f"{num_found} of {len(ids)} images are there")

    images = Filled((len(ids), 3, image_size, image_size), np.dtype(np.uint8), fill)
    return {"images": images, "labels": _labels(index)}


def pool(
    images: pa.Table, synthetic: Sequence[pa.Table], files: Callable[[], Iterable[pa.Table]], image_size: int
) -> dict[str, Made]:
    """`POOL`: the training images followed by all synthetic ones; `keys` are those of their views.

    Args:
        images: `sample_id`, `label` and `split`.
        synthetic: `sample_id`, `label` and `index` of each set.
        files: as `laid_out` takes them.
    """
    index, facts = _pooled(images, synthetic)
    return {**laid_out(index, files, image_size), **facts}


def in_pieces(images: pa.Table, synthetic: Sequence[pa.Table], groups: np.ndarray) -> dict[str, Made]:
    """`STREAMED`: as `pool`, with the piece of the store in which each image lies, and its row there, for its pixels.

    Args:
        groups: a row a piece, whose last figure is its number of rows; in their order they hold the rows of `images`
            and of all synthetic sets as given.
    """
    index, facts = _pooled(images, synthetic)
    stored = [sample_id for table in (images, *synthetic) for sample_id in table["sample_id"].to_pylist()]
    position = {sample_id: i for i, sample_id in enumerate(stored)}
    at_N = np.array([position[sample_id] for sample_id in index["sample_id"].to_pylist()], dtype=np.int64)
    ends = np.cumsum(groups[:, -1])
    piece_N = np.searchsorted(ends, at_N, side="right")
    found = {"groups": groups, "piece": piece_N, "row": at_N - (ends - groups[:, -1])[piece_N]}
    return {**found, "labels": _labels(index), **facts}


def _pooled(images: pa.Table, synthetic: Sequence[pa.Table]) -> tuple[pa.Table, Arrays]:
    """`sample_id` and `label` of what a trial may train on, in order, and what `POOL` has besides its `SPLIT`."""
    real = of_split(images, "train")
    index = pa.concat_tables([part.select(["sample_id", "label"]) for part in (real, *map(in_order, synthetic))])
    keys = [views.sample_key(sample_id) for sample_id in index["sample_id"].to_pylist()]
    return index, {"keys": np.array(keys, dtype=np.uint64), "num_real": np.array([len(real)])}


def _labels(index: pa.Table) -> np.ndarray:
    labels: np.ndarray = index["label"].to_numpy().astype(np.int64)
    return labels


def targets(tables: Sequence[pa.Table], ids: Sequence[Sequence[str]], names: Sequence[str]) -> Arrays:
    """Columns N x V x width of a teacher's targets of the real images and of each synthetic set; `ids` in order.

    Raises:
        ValueError: rows are missing.
    """
    parts = [stored_columns(table, own, names) for table, own in zip(tables, ids, strict=True) if len(own)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
