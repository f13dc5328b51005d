"""Which pairs of a batch may be compared by their labels."""

from __future__ import annotations

import torch
from torch import Tensor


def hard_pairs(labels_B: Tensor, hard_B: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of two trusted labels and, among them, pairs of one class, B x B booleans each.

    Each row is also paired with itself, in both, whether its label is trusted or not: the class of an image is the
    class of that image. A row without a trusted label so stands alone, which keeps its softmax finite and its loss 0.
    """
    alone_BB = torch.eye(len(labels_B), dtype=torch.bool, device=labels_B.device)
    trusted_BB = (hard_B[:, None] & hard_B) | alone_BB
    return trusted_BB, trusted_BB & ((labels_B[:, None] == labels_B) | alone_BB)
