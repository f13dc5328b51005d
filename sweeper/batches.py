"""The images and targets that a trial reads, as tensors: `data_cache` gets them, `feeding` says in which order.

A trial's training set is the real training images followed by the first `num_synthetic` generated ones. Each sample has
V stored views. Tensors are memory maps that all lanes of a node share (`mapped`), where its cache has room for them;
training images for which neither it nor the memory has room are streamed from the store (`streamed`).

Shape letters: N samples, V stored views (view 0 is canonical), B batch, C channels, H W pixels, K classes, T teacher
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from sweeper import decoded
from sweeper.mapped import Arrays
from sweeper.registry import Settings
from sweeper.sources import TargetSource
from sweeper.streamed import StreamedImages
from sweeper.views import ViewConfig

if TYPE_CHECKING:
    import pyarrow as pa


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

    @property
    def stored_size(self) -> int:
        """Height and width in pixels."""
        return self.images_BCHW.shape[-1]

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return self.images_BCHW.nbytes + self.labels_B.nbytes

    def to(self, device: torch.device) -> ImageSplit:
        return ImageSplit(self.images_BCHW.to(device), self.labels_B.to(device))


@dataclass(frozen=True)
class StreamedSplit:
    """An `ImageSplit` whose images stay in the store."""

    images_BCHW: StreamedImages
    labels_B: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels_B)

    @property
    def stored_size(self) -> int:
        return self.images_BCHW.image_size

    @property
    def num_bytes(self) -> int:
        return self.labels_B.nbytes


@dataclass(frozen=True)
class TrialData:
    """All that one trial reads. The first `num_real` training images are real; `keys_N`: uint64 keys of their views."""

    train: ImageSplit | StreamedSplit
    keys_N: np.ndarray
    num_real: int
    source: TargetSource | None
    val: ImageSplit
    test: ImageSplit | None
    class_names: tuple[str, ...]
    image_size: int
    views: ViewConfig
    view_seed: int

    @property
    def num_bytes(self) -> int:
        """What the training images and their targets take."""
        return self.train.num_bytes + (self.source.num_bytes if self.source else 0)


def image_split(table: pa.Table, image_size: int) -> ImageSplit:
    """Rows of an images artifact (raw HWC bytes) as tensors."""
    return tensors(decoded.split(table, image_size))


def tensors(arrays: Arrays, num: int | None = None) -> ImageSplit:
    """The first so many images of `decoded.SPLIT`, or all."""
    images_NCHW, labels_N = (torch.from_numpy(arrays[name][:num]) for name in decoded.SPLIT)
    return ImageSplit(images_NCHW, labels_N)
