"""The images and targets that a trial reads, held as tensors, and the order in which it reads them.

A trial's training set is the real training images followed by the first `num_synthetic` generated ones. Each sample has
V stored views; with a teacher, the pass number decides which stored view (and so which stored target) is replayed, and
without one a fresh view is drawn for each pass by the same counter-based generator, since nothing ties it to a cache.
Order and views depend only on (seed, position), so that a resumed trial reads what an undisturbed one would have read.

Shape letters: N samples, V stored views (view 0 is canonical), B batch, C channels, H W pixels, K classes, T teacher
width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sweeper import views
from sweeper.views import ViewConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from sweeper.store import Store


@dataclass(frozen=True, kw_only=True)
class DataRefs:
    """Which artifacts a trial reads: keys of the store, and how many of the synthetic images."""

    images: str
    synthetic: tuple[str, ...] = ()
    num_synthetic: int = 0
    targets: tuple[str, ...] = ()  # of `images`, then of each of `synthetic`; empty without a teacher


@dataclass(frozen=True)
class ImageSplit:
    """images_BCHW uint8, labels_B long."""

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    def to(self, device: torch.device) -> ImageSplit:
        return ImageSplit(self.images_BCHW.to(device), self.labels_B.to(device))


@dataclass(frozen=True)
class Targets:
    """A teacher's cached outputs, fp16: logits_NVK, embedding_NVT, and the views_NV5 that they belong to."""

    views_NV5: np.ndarray
    logits_NVK: torch.Tensor
    embedding_NVT: torch.Tensor


@dataclass(frozen=True)
class TrialData:
    """All that one trial reads. `hard_N`: the label may be used; `keys_N`: uint64 keys of the view generator."""

    train: ImageSplit
    keys_N: np.ndarray
    hard_N: torch.Tensor
    targets: Targets | None
    val: ImageSplit
    test: ImageSplit | None
    class_names: tuple[str, ...]
    image_size: int
    views: ViewConfig
    view_seed: int


@dataclass(frozen=True)
class Batch:
    """images_BCHW float in [0, 1], cropped and flipped; the teacher's outputs for these very views, or None."""

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    hard_B: torch.Tensor
    index_B: torch.Tensor
    teacher_logits_BK: torch.Tensor | None
    teacher_embedding_BT: torch.Tensor | None


def image_split(table: pa.Table, image_size: int) -> ImageSplit:
    """Rows of an images artifact (raw HWC bytes) as tensors."""
    raw = np.frombuffer(b"".join(table["image"].to_pylist()), dtype=np.uint8)
    images_BHWC = raw.reshape(len(table), image_size, image_size, 3)
    images_BCHW = torch.from_numpy(np.ascontiguousarray(images_BHWC.transpose(0, 3, 1, 2)))
    return ImageSplit(images_BCHW, torch.from_numpy(table["label"].to_numpy().astype(np.int64)))


def _stored_targets(table: pa.Table, sample_ids: Sequence[str]) -> Targets:
    """Rows keyed by (sample_id, view), in any order, as dense arrays in the order of `sample_ids`."""
    position = {sample_id: i for i, sample_id in enumerate(sample_ids)}
    rows = np.array([position.get(s, -1) for s in table["sample_id"].to_pylist()], dtype=np.int64)
    view = table["view"].to_numpy()
    num_views = int(view.max()) + 1
    kept = rows >= 0
    slot = rows[kept] * num_views + view[kept]
    if len(np.unique(slot)) != len(sample_ids) * num_views:
        raise ValueError(f"targets hold {len(np.unique(slot))} of {len(sample_ids) * num_views} (sample, view) rows")

    def dense(name: str, dtype: type) -> np.ndarray:
        column = table[name].combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
        out = np.empty((len(sample_ids) * num_views, values.shape[1]), dtype=dtype)
        out[slot] = values[kept]
        return out.reshape(len(sample_ids), num_views, -1)

    return Targets(
        dense("box", np.float32),
        torch.from_numpy(dense("logits", np.float16)),
        torch.from_numpy(dense("embedding", np.float16)),
    )


class DataCache:
    """Reads artifacts as trial data and keeps the last few tables, read-only, for the trials that follow on a lane."""

    def __init__(self, store: Store, capacity: int = 32) -> None:
        self.store = store
        self.capacity = capacity
        self._tables: dict[str, pa.Table] = {}

    def table(self, key: str) -> pa.Table:
        """The artifact's rows. Raises LookupError when the store no longer holds it."""
        if key not in self._tables:
            record = self.store.get(key)
            if record is None:
                raise LookupError(f"artifact {key[:12]} is not in {self.store.uri}; run again to build it")
            if len(self._tables) >= self.capacity:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = self.store.read_table(record)
        return self._tables[key]

    def trial_data(
        self, refs: DataRefs, *, view_config: ViewConfig, view_seed: int, hard_synthetic: bool, with_test: bool
    ) -> TrialData:
        """Assemble one trial's data on the CPU; `with_test` only for finalists."""
        record = self.store.get(refs.images)
        if record is None:
            raise LookupError(f"images {refs.images[:12]} are not in {self.store.uri}")
        size = int(record.meta["image_size"])
        images = self.table(refs.images)
        split = np.array(images["split"].to_pylist())
        parts = [images.filter(split == "train").select(["sample_id", "label", "image"])]
        ids = [parts[0]["sample_id"].to_pylist()]
        left = refs.num_synthetic
        for key in refs.synthetic:
            part = self.table(key).sort_by([("index", "ascending"), ("label", "ascending")]).slice(0, left)
            parts.append(part.select(["sample_id", "label", "image"]))
            ids.append(part["sample_id"].to_pylist())
            left -= len(part)
        if left > 0:
            raise LookupError(f"{left} of {refs.num_synthetic} synthetic images are missing from the store")
        splits = [image_split(part, size) for part in parts]
        num_real, num_all = len(splits[0]), sum(len(s) for s in splits)
        return TrialData(
            train=ImageSplit(
                torch.cat([s.images_BCHW for s in splits]),
                torch.cat([s.labels_B for s in splits]),
            ),
            keys_N=np.array([views.sample_key(s) for part in ids for s in part], dtype=np.uint64),
            hard_N=torch.arange(num_all) < (num_all if hard_synthetic else num_real),
            targets=self._targets(refs, ids),
            val=image_split(images.filter(split == "val"), size),
            test=image_split(images.filter(split == "test"), size) if with_test else None,
            class_names=tuple(record.meta["class_names"]),
            image_size=size,
            views=view_config,
            view_seed=view_seed,
        )

    def _targets(self, refs: DataRefs, ids: Sequence[Sequence[str]]) -> Targets | None:
        if not refs.targets:
            return None
        parts = [
            _stored_targets(self.table(key), part) for key, part in zip(refs.targets, ids, strict=True) if len(part)
        ]
        return Targets(
            np.concatenate([p.views_NV5 for p in parts]),
            torch.cat([p.logits_NVK for p in parts]),
            torch.cat([p.embedding_NVT for p in parts]),
        )


class BatchStream:
    """Endless, seekable stream of training batches on a device.

    Position p (in samples) belongs to pass p // N; each pass is a permutation seeded by (seed, pass). In pass q,
    sample i shows stored view 1 + (q + key_i) % (V - 1), so that neighbours in a batch are not all at the same view
    number.

    Args:
        data: a trial's data, on the CPU; it is moved to `device` once.
        batch_size: samples of all ranks together.
        rank, num_ranks: this worker's share of each batch (DDP).
    """

    def __init__(
        self, data: TrialData, *, batch_size: int, seed: int, device: torch.device, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.batch_size, self.rank, self.num_ranks = batch_size, rank, num_ranks
        self.train = data.train.to(device)
        self.hard_N = data.hard_N.to(device)
        self.logits_NVK = data.targets.logits_NVK.to(device) if data.targets else None
        self.embedding_NVT = data.targets.embedding_NVT.to(device) if data.targets else None
        self._pass: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def _order(self, number: int) -> np.ndarray:
        if self._pass[0] != number:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            self._pass = (number, rng.permutation(len(self.train)))
        return self._pass[1]

    def indices(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample index and pass number at positions start .. start + batch_size."""
        positions = np.arange(start, start + self.batch_size)
        number = positions // len(self.train)
        index = np.empty_like(positions)
        for q in np.unique(number):
            here = number == q
            index[here] = self._order(int(q))[positions[here] % len(self.train)]
        return index, number

    def batch(self, start: int) -> Batch:
        """The batch that begins at sample position `start`, this rank's share of it."""
        index, number = self.indices(start)
        index, number = index[self.rank :: self.num_ranks], number[self.rank :: self.num_ranks]
        targets = self.data.targets
        index_B = torch.from_numpy(index).to(self.device)
        logits_BK = embedding_BT = None
        if targets is None:
            boxes_B5 = views.draw_views(self.data.views, self.data.view_seed, self.data.keys_N[index], number + 1)
        else:
            num_views = targets.views_NV5.shape[1]
            offset = (self.data.keys_N[index] % np.uint64(max(1, num_views - 1))).astype(np.int64)
            view = 1 + (number + offset) % (num_views - 1) if num_views > 1 else np.zeros_like(number)
            boxes_B5 = targets.views_NV5[index, view]
            view_B = torch.from_numpy(view).to(self.device)
            assert self.logits_NVK is not None
            assert self.embedding_NVT is not None
            logits_BK = self.logits_NVK[index_B, view_B].float()
            embedding_BT = self.embedding_NVT[index_B, view_B].float()
        boxes = torch.from_numpy(np.ascontiguousarray(boxes_B5, dtype=np.float32)).to(self.device)
        images_BCHW = views.apply_views(self.train.images_BCHW[index_B], boxes, self.data.image_size)
        labels_B, hard_B = self.train.labels_B[index_B], self.hard_N[index_B]
        return Batch(images_BCHW, labels_B, hard_B, index_B, logits_BK, embedding_BT)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches from sample position `start` until `stop` is reached."""
        for position in range(start, stop, self.batch_size):
            yield self.batch(position)
