"""The batches of a training, in an order that survives restarts, made on the device.

With a teacher, the pass number decides which stored view (and so which stored target) is replayed, and without one a
fresh view is drawn for each pass by the same counter-based generator, since nothing ties it to a cache. Order and views
depend only on (seed, position), so that a resumed trial reads what an undisturbed one would have read.

Small batches are made several at a time: what each costs besides its pixels (some forty small operations, on a GPU as
many launches) is then paid once for all of them.

Shape letters: B batch, C channels, H W pixels, P parameters of a view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from sweeper import views
from sweeper.batches import TrialData
from sweeper.placement import Placement, placement
from sweeper.sources import LiveTeacher, Sight, TeacherBatch
from sweeper.streamed import ShuffledPieces

# Of views that are made at a time, in float32. On a CPU they should still be in its caches when they are read.
AHEAD_BYTES = {"cpu": 2 * 2**20, "cuda": 64 * 2**20}


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


class BatchStream:
    """Endless, seekable stream of training batches on a device.

    Position p (in samples) belongs to pass p // N; each pass is a permutation seeded by (seed, pass); where images are
    streamed, it is one that reads neighbours together. Within a batch real images come first, so that losses can treat
    the synthetic ones apart without asking the device. The views are those of the trial's source, or fresh ones without
    a teacher.

    Args:
        data: a trial's data, on the CPU.
        batch_size: samples of all ranks together.
        rank, num_ranks: this worker's share of each batch (DDP).
        where: the images and cached targets lie; by default by their size.
    """

    def __init__(
        self,
        data: TrialData,
        *,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        num_ranks: int = 1,
        where: Placement | None = None,
    ) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.batch_size, self.rank, self.num_ranks = batch_size, rank, num_ranks
        self.placement = where or placement(data.num_bytes, device)
        images = data.train.images_BCHW
        self.images = self.placement.put(images) if isinstance(images, torch.Tensor) else ShuffledPieces(images, seed)
        self.labels_N = data.train.labels_B.to(device)
        self.source = data.source.placed(self.placement) if data.source else None
        self._pass: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))
        self._stop = 0
        self._made: dict[tuple[int, int, int], Batch] = {}

    def _order(self, number: int) -> np.ndarray:
        if isinstance(self.images, ShuffledPieces):
            return self.images.order(number)
        if self._pass[0] != number:
            rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
            self._pass = (number, rng.permutation(len(self.data.train)))
        return self._pass[1]

    def _whole(self, index: np.ndarray, number: np.ndarray) -> torch.Tensor:
        """Images [B, C, H, W] as they are stored, on the device."""
        images, size = self.images, self.data.train.stored_size
        if not isinstance(images, ShuffledPieces):
            return self.placement.rows(images, index)
        shape = (len(index), 3, size, size)
        return self.placement.sent(shape, torch.uint8, lambda rows: images.read_into(rows.numpy(), index, number))

    def indices(self, start: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample index and pass number at positions start .. start + batch_size."""
        positions = np.arange(start, start + self.batch_size)
        number = positions // len(self.data.train)
        index = np.empty_like(positions)
        for q in np.unique(number):
            here = number == q
            index[here] = self._order(int(q))[positions[here] % len(self.data.train)]
        return index, number

    def will_read(self, stop: int) -> None:
        """Tell that all batches before sample position `stop` will be read, so that they may be made ahead."""
        self._stop = stop

    def batch(self, start: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch that begins at sample position `start`: this rank's share of it, and of that part `part`."""
        if (start, part, parts) not in self._made:
            last = min(self._stop, start + self._num_ahead(parts) * self.batch_size)
            starts = range(start, max(last, start + 1), self.batch_size)
            made = self._make([self._share(at, part, parts) for at in starts])
            self._made = {(at, part, parts): batch for at, batch in zip(starts, made, strict=True)}
        return self._made.pop((start, part, parts))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches from sample position `start` until `stop` is reached."""
        self.will_read(stop)
        for position in range(start, stop, self.batch_size):
            yield self.batch(position)

    def _num_ahead(self, parts: int) -> int:
        """How many batches are made at a time; a teacher in the loop works on one."""
        if isinstance(self.source, LiveTeacher) or parts > 1:
            return 1
        num_bytes = 4 * 3 * self.data.train.stored_size**2 * self.batch_size // self.num_ranks
        return max(1, AHEAD_BYTES.get(self.device.type, 0) // max(1, num_bytes))

    def _share(self, start: int, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample index and pass number of this rank's share of a batch, or of a part of it; real images first."""
        own = slice(self.rank + part * self.num_ranks, None, self.num_ranks * parts)
        index, number = (values[own] for values in self.indices(start))
        order = np.argsort(index >= self.data.num_real, kind="stable")
        return index[order], number[order]

    def _make(self, shares: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[Batch]:
        """The batches of these samples in these passes, made as one and cut."""
        index, number = (np.concatenate(values) for values in zip(*shares, strict=True))
        index_B = torch.from_numpy(index).to(self.device, non_blocking=True)
        if self.source is None:
            drawn = views.draw_views(self.data.views, self.data.view_seed, self.data.keys_N[index], number + 1)
        else:
            drawn = self.source.views_of(index, number)
        views_BP = torch.from_numpy(np.ascontiguousarray(drawn, dtype=np.float32)).to(self.device, non_blocking=True)
        whole_BCHW = self._whole(index, number)
        images_BCHW = views.apply_views(whole_BCHW, views_BP, self.data.image_size)
        labels_B = self.labels_N.index_select(0, index_B)
        teacher = None
        if self.source is not None:
            teacher = self.source.targets(Sight(index, number, whole_BCHW, views_BP, images_BCHW))
        if len(shares) == 1:
            return [Batch(images_BCHW, labels_B, index_B, self._num_real(index), teacher)]
        ends = np.cumsum([len(own) for own, _ in shares])
        found = []
        for (own, _), end in zip(shares, ends, strict=True):
            rows = slice(int(end) - len(own), int(end))
            cut = None if teacher is None else _rows(teacher, rows)
            found.append(Batch(images_BCHW[rows], labels_B[rows], index_B[rows], self._num_real(own), cut))
        return found

    def _num_real(self, index: np.ndarray) -> int:
        return int((index < self.data.num_real).sum())


def _rows(teacher: TeacherBatch, rows: slice) -> TeacherBatch:
    """Some rows of what a cache gave, which holds no maps."""
    found = {field.name: getattr(teacher, field.name) for field in fields(teacher)}
    cut: dict[str, Any] = {name: value[rows] for name, value in found.items() if isinstance(value, torch.Tensor)}
    return TeacherBatch(**cut)
