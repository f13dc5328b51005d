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

from sweeper import adapted, sources, views
from sweeper.errors import RunFailed
from sweeper.losses import COLUMNS
from sweeper.registry import Settings
from sweeper.sources import CachedTargets, LiveTeacher, Sight, TargetSource, TeacherBatch
from sweeper.views import ViewConfig

if TYPE_CHECKING:
    import pyarrow as pa

    from sweeper.store import Record, Store
    from sweeper.teachers import Teacher


@dataclass(frozen=True, kw_only=True)
class TeacherRefs:
    """One teacher of a trial. `targets`: of the images, then of each synthetic set; none for a teacher in the loop."""

    adapt: str
    config: Settings
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataRefs:
    """Which artifacts a trial reads: keys of the store, and how many of the synthetic images."""

    images: str
    synthetic: tuple[str, ...] = ()
    num_synthetic: int = 0
    teachers: tuple[TeacherRefs, ...] = ()  # several of an ensemble; none without a teacher
    is_separate: bool = False  # how an ensemble's embeddings are read


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
class TrialData:
    """All that one trial reads. The first `num_real` training images are real; `keys_N`: uint64 keys of their views."""

    train: ImageSplit
    keys_N: np.ndarray
    num_real: int
    source: TargetSource | None
    val: ImageSplit
    test: ImageSplit | None
    class_names: tuple[str, ...]
    image_size: int
    views: ViewConfig
    view_seed: int


@dataclass(frozen=True)
class Batch:
    """images_BCHW float in [0, 1], cropped and flipped, the first `num_real` of them real ones; the teacher's outputs
    for these very views, or None.
    """

    images_BCHW: torch.Tensor
    labels_B: torch.Tensor
    index_B: torch.Tensor
    num_real: int
    teacher: TeacherBatch | None


def image_split(table: pa.Table, image_size: int) -> ImageSplit:
    """Rows of an images artifact (raw HWC bytes) as tensors."""
    raw = np.frombuffer(b"".join(table["image"].to_pylist()), dtype=np.uint8)
    images_BHWC = raw.reshape(len(table), image_size, image_size, 3)
    images_BCHW = torch.from_numpy(images_BHWC.transpose(0, 3, 1, 2).copy())
    return ImageSplit(images_BCHW, torch.from_numpy(table["label"].to_numpy().astype(np.int64)))


class DataCache:
    """Reads artifacts as trial data and keeps the last few tables, read-only, for the trials that follow on a lane."""

    def __init__(self, store: Store, capacity: int = 32) -> None:
        self.store = store
        self.capacity = capacity
        self._tables: dict[str, pa.Table] = {}
        self._teachers: dict[str, Teacher] = {}
        self._classifiers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def table(self, key: str) -> pa.Table:
        """The artifact's rows. Raises RunFailed when the store no longer holds it."""
        if key not in self._tables:
            record = self.record(key)
            if len(self._tables) >= self.capacity:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = self.store.read_table(record)
        return self._tables[key]

    def record(self, key: str) -> Record:
        """The artifact's record. Raises RunFailed when the store no longer holds it."""
        record = self.store.get(key)
        if record is None:
            raise RunFailed(f"artifact {key[:12]} is not in {self.store.uri}; run again to build it")
        return record

    def trial_data(
        self,
        refs: DataRefs,
        *,
        needs: frozenset[str],
        view_config: ViewConfig,
        view_seed: int,
        with_test: bool,
    ) -> TrialData:
        """Assemble one trial's data on the CPU; `needs` as `losses.INPUTS` names it, `with_test` only for finalists."""
        record = self.record(refs.images)
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
            raise RunFailed(f"{left} of {refs.num_synthetic} synthetic images are missing from {self.store.uri}")
        splits = [image_split(part, size) for part in parts]
        keys_N = np.array([views.sample_key(s) for part in ids for s in part], dtype=np.uint64)
        class_names = tuple(record.meta["class_names"])
        live = [teacher for teacher in refs.teachers if not teacher.targets]
        source: TargetSource | None = None
        if live:
            source = self._live(live[0], needs, keys_N, view_config, view_seed)
        elif refs.teachers:
            members = [self._cached(teacher, needs, ids, keys_N) for teacher in refs.teachers]
            source = sources.together(members, separate=refs.is_separate)
        return TrialData(
            train=ImageSplit(
                torch.cat([s.images_BCHW for s in splits]),
                torch.cat([s.labels_B for s in splits]),
            ),
            keys_N=keys_N,
            num_real=len(splits[0]),
            source=source,
            val=image_split(images.filter(split == "val"), size),
            test=image_split(images.filter(split == "test"), size) if with_test else None,
            class_names=class_names,
            image_size=size,
            views=view_config,
            view_seed=view_seed,
        )

    def _cached(
        self, refs: TeacherRefs, needs: frozenset[str], ids: Sequence[Sequence[str]], keys_N: np.ndarray
    ) -> CachedTargets:
        """A teacher's stored columns that the trial needs, for its images in order."""
        names = [name for name in sorted(COLUMNS) if name in needs]
        parts = [
            sources.stored_columns(self.table(key), part, ["box", *names])
            for key, part in zip(refs.targets, ids, strict=True)
            if len(part)
        ]
        columns = {name: torch.from_numpy(np.concatenate([p[name] for p in parts])) for name in names}
        if refs.adapt not in self._classifiers:
            self._classifiers[refs.adapt] = adapted.load_classifier(self.store, self.record(refs.adapt))
        classifier = self._classifiers[refs.adapt]
        return CachedTargets(
            keys_N=keys_N,
            views_NV5=np.concatenate([p["box"] for p in parts]),
            columns=columns,
            classifiers=(classifier,),
            widths=(classifier[0].shape[1],),
        )

    def _live(
        self,
        refs: TeacherRefs,
        needs: frozenset[str],
        keys_N: np.ndarray,
        view_config: ViewConfig,
        view_seed: int,
    ) -> LiveTeacher:
        """The teacher itself; kept for the trials that follow."""
        if refs.adapt not in self._teachers:
            (images, *_) = self.record(refs.adapt).dependencies  # of the task; those of a pool have no classes
            class_names = self.record(images).meta["class_names"]
            self._teachers = {refs.adapt: adapted.load_teacher(self.store, refs.adapt, refs.config, class_names)}
        teacher = self._teachers[refs.adapt]
        num_maps = len(teacher.tap_points.maps) if "maps" in needs else 0
        return LiveTeacher(
            teacher=teacher, keys_N=keys_N, views=view_config, view_seed=view_seed, needs=needs, num_maps=num_maps
        )


class BatchStream:
    """Endless, seekable stream of training batches on a device.

    Position p (in samples) belongs to pass p // N; each pass is a permutation seeded by (seed, pass). Within a batch
    real images come first, so that losses can treat the synthetic ones apart without asking the device. The views are
    those of the trial's source, or fresh ones without a teacher.

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
        self.source = data.source.to(device) if data.source else None
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

    def batch(self, start: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch that begins at sample position `start`: this rank's share of it, and of that part `part`."""
        own = slice(self.rank + part * self.num_ranks, None, self.num_ranks * parts)
        index, number = (values[own] for values in self.indices(start))
        order = np.argsort(index >= self.data.num_real, kind="stable")
        index, number = index[order], number[order]
        index_B = torch.from_numpy(index).to(self.device)
        if self.source is None:
            boxes = views.draw_views(self.data.views, self.data.view_seed, self.data.keys_N[index], number + 1)
        else:
            boxes = self.source.boxes(index, number)
        boxes_B5 = torch.from_numpy(np.ascontiguousarray(boxes, dtype=np.float32)).to(self.device)
        whole_BCHW = self.train.images_BCHW[index_B]
        images_BCHW = views.apply_views(whole_BCHW, boxes_B5, self.data.image_size)
        teacher = None
        if self.source is not None:
            teacher = self.source.targets(Sight(index, number, whole_BCHW, boxes_B5, images_BCHW))
        num_real = int((index < self.data.num_real).sum())
        return Batch(images_BCHW, self.train.labels_B[index_B], index_B, num_real, teacher)

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches from sample position `start` until `stop` is reached."""
        for position in range(start, stop, self.batch_size):
            yield self.batch(position)
