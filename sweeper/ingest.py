"""The images stage: every image of a dataset decoded, cut to a square and resized once, by Ray Data.

One task decodes one block of the index and writes one parquet file, named after the block's first row: a block that Ray
runs again overwrites its own file, and the rows lie in the order of the index however the work was sharded. What comes
back to the driver is counts, the list of unreadable images and a digest of each image's pixels, by which those that lie
in several splits are found. The tasks import neither torch nor timm.

Columns: sample_id string, label int32, split string, image binary (raw uint8 RGB, height x width x channel).
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from PIL import Image

from sweeper import registry, shards
from sweeper.datasets import SPLITS, DatasetIndex, shorten
from sweeper.errors import InputError, RunFailed
from sweeper.plan import Artifact
from sweeper.record import Record
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary
from sweeper.store import Store
from sweeper.wording import one_line

MAX_UNREADABLE = 0.01
BLOCK_BYTES = 64 * 2**20  # pixels of one file, which one task holds in memory
DECODE_ROWS = 8  # full-size images that a task holds at once: 36 MB each from a camera, 300 MB at `MAX_PIXELS`
DIGEST_BYTES = 16
MAX_EXAMPLES = 20
MIN_BLOCK_ROWS = 512  # a task costs about 10 ms besides its work
BLOCKS_PER_CPU = 4  # so that the last blocks of a pass leave the other CPUs idle for a short time only
SCHEMA = pa.schema([("sample_id", pa.string()), ("label", pa.int32()), ("split", pa.string()), ("image", pa.binary())])


class ImageWorker:
    """Decodes the images of one block and writes those that can be read as one file."""

    def __init__(self, *, store: Store, prefix: str, dataset: Settings) -> None:
        self.store, self.prefix, self.dataset = store, prefix, dataset
        self.size = _image_size(dataset)
        self.decode = registry.load("datasets", dataset.kind).decode  # type: ignore[attr-defined]

    def __call__(self, rows: pa.Table) -> Summary:
        """`rows` has the columns row, sample_id, label, split and source.

        Of the summary, `unreadable` is JSON, and `digests` has `DIGEST_BYTES` of each row, zeros for an unreadable one.
        """
        sources = rows["source"].to_pylist()
        found = [
            image for i in range(0, len(rows), DECODE_ROWS) for image in self._pixels(sources[i : i + DECODE_ROWS])
        ]
        readable = pa.array([isinstance(image, bytes) for image in found])
        pixels = [image for image in found if isinstance(image, bytes)]
        if pixels:
            kept = rows.filter(readable)
            columns = [kept["sample_id"], kept["label"], kept["split"], pa.array(pixels, pa.binary())]
            buffer = io.BytesIO()
            table = pa.table(columns, schema=SCHEMA)
            pq.write_table(table, buffer, compression="zstd", compression_level=1, use_dictionary=["split"])
            self.store.write_bytes(self.prefix, f"images-{rows['row'][0].as_py():010d}.parquet", buffer.getvalue())
        errors = [_describe(image) for image in found if isinstance(image, Exception)]
        lost = rows.filter(pc.invert(readable))["sample_id"].to_pylist()
        return {
            "rows": len(rows),
            "first": rows["row"][0].as_py(),
            "unreadable": json.dumps(dict(zip(lost, errors, strict=True))),
            "digests": b"".join(_digest(image) for image in found),
        }

    def _pixels(self, sources: Sequence[str]) -> list[bytes | Exception]:
        images: list[Image.Image | Exception] = self.decode(self.dataset, sources)
        return [image if isinstance(image, Exception) else fit_square(image, self.size) for image in images]


def build(
    store: Store, artifact: Artifact, dataset: Settings, index: DatasetIndex, *, progress: Progress | None = None
) -> Record:
    """Decode and store every image, and commit them as `artifact`. Needs an initialised Ray.

    Args:
        dataset: a `Config` of a kind in `sweeper/datasets`, and its index.
        progress: told the number of images that each finished block looked at.

    Returns:
        The record. Its `meta` has `unreadable` (a list of {sample_id, error}), `duplicates` (`across_splits`),
        `class_names`, `splits` (how many images each keeps) and `image_size`. Decoding holds no device, so that there
        is no charge.

    Raises:
        InputError: more than 1% of the images are unreadable, or none is left of some split or training class.
        RunFailed: what was written is not what was asked for.
    """
    rows = pa.table(
        {
            "row": np.arange(len(index)),
            "sample_id": index.sample_ids,
            "label": index.labels.astype(np.int32),
            "split": index.splits,
            "source": index.sources,
        }
    )
    prefix = store.staging()
    try:
        make = partial(ImageWorker, store=store, prefix=prefix, dataset=dataset)
        done = shards.run(rows, make, Shape(_block_rows(len(index), _image_size(dataset)), pool=0), progress)
        unreadable: dict[str, str] = {}
        for summary in done:
            unreadable |= json.loads(summary["unreadable"])
        digests = b"".join(summary["digests"] for summary in sorted(done, key=lambda summary: int(summary["first"])))
        counts = _check(store, prefix, index, unreadable)
        meta = {
            "unreadable": [{"sample_id": sample_id, "error": error} for sample_id, error in sorted(unreadable.items())],
            "duplicates": across_splits(digests, index),
            "class_names": list(index.class_names),
            "splits": counts,
            "image_size": _image_size(dataset),
        }
        num_rows = sum(counts.values())
        record = store.commit(artifact.key, artifact.kind, artifact.spec, prefix, rows=num_rows, meta=meta)
    except BaseException:
        store.discard(prefix)
        raise
    if record.prefix != prefix:  # another process was first
        store.discard(prefix)
    return record


def across_splits(digests: bytes, index: DatasetIndex) -> list[dict[str, Any]]:
    """Images that lie in two splits, pixel by pixel as they are stored, whatever their files look like.

    They are kept, because the splits are the user's own, and reported: an image of test that is in train, too, makes
    `accuracy_test` better than it is, and one of val the search's choice worse.

    Args:
        digests: `DIGEST_BYTES` of each image of `index`, in its order; zeros count as no image.

    Returns:
        For each pair of splits that share some: `splits` (two names), `count` (how many images of the second are in the
        first) and `examples` (at most `MAX_EXAMPLES` pairs of sample ids).
    """
    by_digest: dict[str, dict[bytes, list[str]]] = {split: {} for split in dict.fromkeys(index.splits)}
    for row, (sample_id, split) in enumerate(zip(index.sample_ids, index.splits, strict=True)):
        if any(digest := digests[row * DIGEST_BYTES : (row + 1) * DIGEST_BYTES]):
            by_digest[split].setdefault(digest, []).append(sample_id)
    found = []
    for one, other in combinations([split for split in SPLITS if split in by_digest], 2):
        shared = [digest for digest in by_digest[other] if digest in by_digest[one]]
        pairs = [[by_digest[one][digest][0], name] for digest in shared for name in by_digest[other][digest]]
        if pairs:
            found.append({"splits": [one, other], "count": len(pairs), "examples": sorted(pairs)[:MAX_EXAMPLES]})
    return found


def fit_square(image: Image.Image | npt.NDArray[np.uint8], size: int) -> bytes:
    """The centre square, resized with Pillow's bicubic filter, which is antialiased.

    Cutting first keeps a very long image from becoming a huge one when its short side is enlarged.

    Args:
        image: RGB; an array is [H, W, 3].

    Returns:
        Raw uint8 RGB of `size` x `size` x 3, row by row: what the `image` column holds.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return square.tobytes()


def _check(store: Store, prefix: str, index: DatasetIndex, unreadable: dict[str, str]) -> dict[str, int]:
    """Compare what was written with the index. Returns the number of images that each split keeps."""
    where = "dataset" if index.class_names else "pools"
    if len(unreadable) > MAX_UNREADABLE * len(index):
        listed = shorten([f"{sample_id} ({error})" for sample_id, error in sorted(unreadable.items())], limit=5)
        raise InputError(
            f"{where}: {len(unreadable):,} of {len(index):,} images cannot be read "
            f"({len(unreadable) / len(index):.1%}, at most {MAX_UNREADABLE:.0%} is allowed): {listed}; "
            "repair these files or remove them"
        )
    kept = [row for row, sample_id in enumerate(index.sample_ids) if sample_id not in unreadable]
    written = shards.written(store, prefix, ["sample_id"])["sample_id"].to_pylist() if kept else []
    if sorted(written) != sorted(index.sample_ids[row] for row in kept):
        raise RunFailed(
            f"images: {len(written):,} rows with {len(set(written)):,} different ids were written, expected "
            f"{len(kept):,}; nothing was kept, run again"
        )
    counts = {split: sum(index.splits[row] == split for row in kept) for split in dict.fromkeys(index.splits)}
    trained = {int(index.labels[row]) for row in kept if index.splits[row] == "train"}
    lost = [split for split, count in counts.items() if not count]
    lost += [f"class {name} of train" for label, name in enumerate(index.class_names) if label not in trained]
    if lost:
        raise InputError(
            f"{where}: every image of {shorten(lost)} is unreadable ({shorten(sorted(unreadable))}); replace them"
        )
    return counts


def _block_rows(num_rows: int, image_size: int) -> int:
    """Rows of one task: few tasks for few images, and never more pixels than `BLOCK_BYTES`."""
    num_cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    fair = -(-num_rows // (BLOCKS_PER_CPU * num_cpus))
    return max(1, min(BLOCK_BYTES // (3 * image_size**2), max(MIN_BLOCK_ROWS, fair)))


def _digest(image: bytes | Exception) -> bytes:
    if isinstance(image, Exception):
        return bytes(DIGEST_BYTES)
    return hashlib.blake2b(image, digest_size=DIGEST_BYTES).digest()


def _image_size(dataset: Settings) -> int:
    return int(dataset.image_size)  # type: ignore[attr-defined]


def _describe(error: Exception) -> str:
    """One line; Pillow's message for unknown formats is the address of a buffer."""
    text = one_line(str(error), 200)
    if type(error).__name__ == "UnidentifiedImageError":
        text = "not an image format that Pillow knows"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
