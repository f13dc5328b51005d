"""What a student says of a split on canonical views (view 0: no crop, no flip), at its own resolution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from sweeper import views

if TYPE_CHECKING:
    from sweeper.batches import ImageSplit
    from sweeper.student import Student

EVAL_BATCH = 512
Confusion = list[tuple[int, int, int]]  # class, what it was taken for, images; ascending, none of them 0


def accuracy(student: Student, split: ImageSplit, batch_size: int = EVAL_BATCH) -> float:
    """Top-1 accuracy in [0, 1]; leaves the student in the mode (train or eval) in which it came.

    Args:
        split: on the student's device, or on the host.
    """
    right: torch.Tensor | int = 0
    for labels_B, predicted_B in _answers(student, split, batch_size):
        right = right + (predicted_B == labels_B).sum()  # stays on the device: no wait a batch
    return float(right) / max(1, len(split))


def confusion(student: Student, split: ImageSplit, batch_size: int = EVAL_BATCH) -> Confusion:
    """How often each class was taken for which, as counts of the pairs that occurred. Arguments as of `accuracy`."""
    pairs = [torch.stack(pair, dim=1) for pair in _answers(student, split, batch_size)]
    if not pairs:
        return []
    counts = Counter(map(tuple, torch.cat(pairs).tolist()))
    return [(truth, taken, count) for (truth, taken), count in sorted(counts.items())]


def accuracy_of(found: Confusion) -> float:
    """The accuracy that the counts come to, exactly as `accuracy` gives it."""
    right = sum(count for truth, taken, count in found if truth == taken)
    return right / max(1, sum(count for _, _, count in found))


@torch.no_grad()
def _answers(student: Student, split: ImageSplit, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Labels and predicted classes [B] of each batch, on the student's device."""
    was_training = student.training
    student.eval()
    device = next(student.parameters(), split.images_BCHW).device
    for start in range(0, len(split), batch_size):
        part = slice(start, start + batch_size)
        images_BCHW = views.whole(split.images_BCHW[part].to(device), student.image_size)
        predicted_B = student(images_BCHW).logits_BK.argmax(dim=1)
        yield split.labels_B[part].to(device), predicted_B
    student.train(was_training)
