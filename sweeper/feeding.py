"""The batches of a training, in an order that survives restarts, made on the device.

With a teacher, the pass number decides which stored view (and so which stored target) is replayed, and without one a
fresh view is drawn for each pass by the same counter-based generator, since nothing ties it to a cache. Order and views
depend only on (seed, position), so that a resumed trial reads what an undisturbed one would have read.

Small batches are made several at a time: what each costs besides its pixels (some forty small operations, on a GPU as
many launches) is then paid once for all of them.

Shape letters: K batches made together, B batch, N samples (of all batches together), C channels, H W pixels,
P parameters of a view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from sweeper import views
from sweeper.batches import TrialData
from sweeper.placement import Placement, placement
from sweeper.sources import LiveTeacher, Sight, TeacherBatch
from sweeper.streamed import ShuffledPieces

# Of views that are made at a time, in float32. On a CPU they should still be in its caches when they are read, but code
# that last ran a few steps ago is not: each small operation then takes ten times as long.
AHEAD_BYTES = {"cpu": 4 * 2**20, "cuda": 64 * 2**20}


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

    def indices(self, start: int, num_batches: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Sample index and pass number at positions start .. start + num_batches * batch_size."""
        number, place = np.divmod(np.arange(start, start + num_batches * self.batch_size), len(self.data.train))
        index = np.empty_like(place)
        for q in range(int(number[0]), int(number[-1]) + 1):
            here = number == q
            index[here] = self._order(q)[place[here]]
        return index, number

    def will_read(self, stop: int) -> None:
        """Tell that all batches before sample position `stop` will be read, so that they may be made ahead."""
        self._stop = stop

    def batch(self, start: int, part: int = 0, parts: int = 1) -> Batch:
        """The batch that begins at sample position `start`: this rank's share of it, and of that part `part`."""
        if (start, part, parts) not in self._made:
            last = min(self._stop, start + self._num_ahead(parts) * self.batch_size)
            starts = range(start, max(last, start + 1), self.batch_size)
            made = self._make(*self._shares(start, len(starts), part, parts))
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

    def _shares(self, start: int, num_batches: int, part: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample index and pass number [K, B] of this rank's share of K batches, or of parts of them; real first."""
        own = slice(self.rank + part * self.num_ranks, None, self.num_ranks * parts)
        index_KB, number_KB = (found.reshape(num_batches, -1)[:, own] for found in self.indices(start, num_batches))
        if self.data.num_real == len(self.data.train):
            return index_KB, number_KB
        order_KB = np.argsort(index_KB >= self.data.num_real, axis=1, kind="stable")
        return np.take_along_axis(index_KB, order_KB, axis=1), np.take_along_axis(number_KB, order_KB, axis=1)

    def _make(self, index_KB: np.ndarray, number_KB: np.ndarray) -> list[Batch]:
        """K batches of these samples in these passes, made as one and cut."""
        index, number = index_KB.ravel(), number_KB.ravel()
        index_N = torch.from_numpy(index).to(self.device, non_blocking=True)
        if self.source is None:
            drawn = views.draw_views(self.data.views, self.data.view_seed, self.data.keys_N[index], number + 1)
        else:
            drawn = self.source.views_of(index, number)
        views_NP = torch.from_numpy(np.ascontiguousarray(drawn, dtype=np.float32)).to(self.device, non_blocking=True)
        whole_NCHW = self._whole(index, number)
        images_NCHW = views.apply_views(whole_NCHW, views_NP, self.data.image_size)
        labels_N = self.labels_N.index_select(0, index_N)
        teacher = None
        if self.source is not None:
            teacher = self.source.targets(Sight(index, number, whole_NCHW, views_NP, images_NCHW))
        num_real_K = (index_KB < self.data.num_real).sum(axis=1).tolist()
        if len(num_real_K) == 1:
            return [Batch(images_NCHW, labels_N, index_N, num_real_K[0], teacher)]
        found = []
        for k, num_real in enumerate(num_real_K):
            rows = slice(k * index_KB.shape[1], (k + 1) * index_KB.shape[1])
            cut = None if teacher is None else _rows(teacher, rows)
            found.append(Batch(images_NCHW[rows], labels_N[rows], index_N[rows], num_real, cut))
        return found


def _rows(teacher: TeacherBatch, rows: slice) -> TeacherBatch:
    """Some rows of what a cache gave, which holds no maps."""
    found = {field.name: getattr(teacher, field.name) for field in fields(teacher)}
    cut: dict[str, Any] = {name: value[rows] for name, value in found.items() if isinstance(value, torch.Tensor)}
    return TeacherBatch(**cut)
