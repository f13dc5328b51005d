"""Accuracy of a student on canonical views (view 0: no crop, no flip), at its own resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sweeper import views

if TYPE_CHECKING:
    from sweeper.batches import ImageSplit
    from sweeper.student import Student

EVAL_BATCH = 512


@torch.no_grad()
def accuracy(student: Student, split: ImageSplit, batch_size: int = EVAL_BATCH) -> float:
    """Top-1 accuracy in [0, 1]; leaves the student in the mode (train or eval) in which it came.

    Args:
        split: on the student's device, or on the host.
    """
    was_training = student.training
    student.eval()
    device = next(student.parameters(), split.images_BCHW).device
    right = torch.zeros((), dtype=torch.long, device=device)
    for start in range(0, len(split), batch_size):
        part = slice(start, start + batch_size)
        images_BCHW = views.whole(split.images_BCHW[part].to(device), student.image_size)
        predicted_B = student(images_BCHW).logits_BK.argmax(dim=1)
        right += (predicted_B == split.labels_B[part].to(device)).sum()
    student.train(was_training)
    return float(right) / max(1, len(split))
