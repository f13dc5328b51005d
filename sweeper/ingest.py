"""The images stage: every image of a dataset decoded, cut to a square and resized once, by Ray Data.

One task decodes one block of the index and writes one parquet file, named after the block's first row: a block that Ray
runs again overwrites its own file, and the rows lie in the order of the index however the work was sharded and however
often it was cut off and gone on with. What comes back to the driver is counts, the list of unreadable images and a
digest of each image's pixels, by which those that lie in several places are found (`duplicates`). The tasks import
neither torch nor timm.

Columns: sample_id string, label int32, split string, image binary (raw uint8 RGB, height x width x channel).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from PIL import Image

from sweeper import duplicates, registry, shards
from sweeper.datasets import DatasetIndex, shorten
from sweeper.duplicates import DIGEST_BYTES
from sweeper.errors import InputError
from sweeper.lease import Tell, untold
from sweeper.pixels import MAX_UNREADABLE, fit_square, why_unreadable
from sweeper.plan import Artifact
from sweeper.record import Record
from sweeper.registry import Settings
from sweeper.shards import Progress, Shape, Summary
from sweeper.staged import Note, Spoilt, Staged, with_note
from sweeper.store import Store

UNREADABLE = "unreadable"  # what the note of a file tells of its block: errors by sample id
BLOCK_BYTES = 64 * 2**20  # pixels of one file, which one task holds in memory
GROUP_BYTES = 4 * 2**20  # pixels of one row group, the least that a training reads of images that it streams
DECODE_ROWS = 8  # full-size images that a task holds at once: 36 MB each from a camera, 300 MB at `MAX_PIXELS`
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
        errors = [why_unreadable(image) for image in found if isinstance(image, Exception)]
        lost = rows.filter(pc.invert(readable))["sample_id"].to_pylist()
        unreadable, size = dict(zip(lost, errors, strict=True)), 0
        if pixels:
            kept = rows.filter(readable)
            columns = [kept["sample_id"], kept["label"], kept["split"], pa.array(pixels, pa.binary())]
            data = encoded(with_note(pa.table(columns, schema=SCHEMA), {UNREADABLE: unreadable}), self.size)
            self.store.write_bytes(self.prefix, f"images-{rows['row'][0].as_py():010d}.parquet", data)
            size = len(data)
        return {
            "rows": len(rows),
            "bytes": size,
            "first": rows["row"][0].as_py(),
            UNREADABLE: json.dumps(unreadable),
            "digests": b"".join(_digest(image) for image in found),
        }

    def _pixels(self, sources: Sequence[str]) -> list[bytes | Exception]:
        images: list[Image.Image | Exception] = self.decode(self.dataset, sources)
        return [image if isinstance(image, Exception) else fit_square(image, self.size) for image in images]


def encoded(table: pa.Table, image_size: int) -> bytes:
    """A file of images: rows of `SCHEMA` in row groups of `GROUP_BYTES`."""
    buffer = io.BytesIO()
    options = {"compression_level": 1, "use_dictionary": ["split"], "write_page_checksum": True}
    rows_of_group = max(1, GROUP_BYTES // (3 * image_size**2))
    pq.write_table(table, buffer, compression="zstd", row_group_size=rows_of_group, **options)
    return buffer.getvalue()


def build(
    store: Store,
    artifact: Artifact,
    dataset: Settings,
    index: DatasetIndex,
    *,
    prefix: str | None = None,
    progress: Progress | None = None,
    tell: Tell = untold,
) -> Record:
    """Decode and store every image, and commit them as `artifact`. Needs an initialised Ray.

    Args:
        dataset: a `Config` of a kind in `sweeper/datasets`, and its index.
        prefix: where an earlier build staged some of the images, which are not decoded again; None: nowhere.
        progress: told the number of images that each finished block looked at.
        tell: is told how many an earlier build had decoded.

    Returns:
        The record. Its `meta` has `unreadable` (a list of {sample_id, error}), `duplicates` (`across_splits` there),
        `class_names`, `splits` (how many images each keeps) and `image_size`. Decoding holds no device, so that there
        is no charge.

    Raises:
        InputError: more than 1% of the images are unreadable, or none is left of some split or training class; nothing
            stays staged.
        RunFailed: what was written is not what was asked for, and nothing stays; or the store failed, and all does.
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
    found = _Found(index)
    files = Staged(store, prefix or store.staging(), index.sample_ids, says={UNREADABLE}, seen=found.keep)
    files.missing -= found.unreadable.keys()
    files.report(progress, tell)
    missing = [row for row, sample_id in enumerate(index.sample_ids) if sample_id in files.missing]
    blocks = [rows.slice(run.start, len(run)) for run in _runs(missing, _block_rows(len(index), _image_size(dataset)))]
    make = partial(ImageWorker, store=store, prefix=files.own, dataset=dataset)
    with files.discarded_if_spoilt():
        for summary in shards.run(blocks, make, Shape(batch_size=1, pool=0), progress):
            found.add(summary)
        counts = _check(files, index, found.unreadable)
        store.write_bytes(files.own, duplicates.FILE, bytes(found.digests))
        meta = {
            "unreadable": [{"sample_id": name, "error": error} for name, error in sorted(found.unreadable.items())],
            "duplicates": duplicates.across_splits(bytes(found.digests), index),
            "class_names": list(index.class_names),
            "splits": counts,
            "image_size": _image_size(dataset),
        }
        return files.commit(artifact.key, artifact.kind, artifact.spec, rows=sum(counts.values()), meta=meta)


class _Found:
    """What is known of the images besides their pixels, of those that an earlier build decoded as of the new ones."""

    def __init__(self, index: DatasetIndex) -> None:
        self._row_of = {sample_id: row for row, sample_id in enumerate(index.sample_ids)}
        self.unreadable: dict[str, str] = {}
        self.digests = bytearray(DIGEST_BYTES * len(index))

    def keep(self, rows: pa.Table, note: Note) -> None:
        """A file that is there."""
        self.unreadable |= note[UNREADABLE]
        for sample_id, image in zip(rows["sample_id"].to_pylist(), rows["image"].to_pylist(), strict=True):
            self._put(self._row_of[sample_id], duplicates.digest(image))

    def add(self, summary: Summary) -> None:
        """A block that was decoded now."""
        self.unreadable |= json.loads(summary[UNREADABLE])
        self._put(summary["first"], summary["digests"])

    def _put(self, row: int, digests: bytes) -> None:
        self.digests[row * DIGEST_BYTES : row * DIGEST_BYTES + len(digests)] = digests


def _runs(rows: Sequence[int], most: int) -> Iterator[range]:
    """Ascending rows as runs without a gap of at most so many: a file holds neighbours, and so files can be ordered."""
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or rows[stop] != rows[stop - 1] + 1 or stop - start == most:
            yield range(rows[start], rows[stop - 1] + 1)
            start = stop


def _check(files: Staged, index: DatasetIndex, unreadable: Mapping[str, str]) -> dict[str, int]:
    """Compare what was written with the index. Returns the number of images that each split keeps."""
    try:
        return _counts(files.read(["sample_id"])[0]["sample_id"].to_pylist(), index, unreadable)
    except InputError:  # other images will have to be read
        files.store.discard(files.prefix)
        raise


def _counts(written: Sequence[str], index: DatasetIndex, unreadable: Mapping[str, str]) -> dict[str, int]:
    where = "dataset" if index.class_names else "pools"
    if len(unreadable) > MAX_UNREADABLE * len(index):
        listed = shorten([f"{sample_id} ({error})" for sample_id, error in sorted(unreadable.items())], limit=5)
        raise InputError(
            f"{where}: {len(unreadable):,} of {len(index):,} images cannot be read "
            f"({len(unreadable) / len(index):.1%}, at most {MAX_UNREADABLE:.0%} is allowed): {listed}; "
            "repair these files or remove them"
        )
    kept = [row for row, sample_id in enumerate(index.sample_ids) if sample_id not in unreadable]
    if sorted(written) != sorted(index.sample_ids[row] for row in kept):
        raise Spoilt(
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
    return bytes(DIGEST_BYTES) if isinstance(image, Exception) else duplicates.digest(image)


def _image_size(dataset: Settings) -> int:
    return int(dataset.image_size)  # type: ignore[attr-defined]
