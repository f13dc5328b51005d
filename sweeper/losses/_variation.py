"""What the losses on correlations and standardised vectors share: deviations from the mean that are not rounding."""

from __future__ import annotations

import torch
from torch import Tensor

# A vector that varies by less, relative to its length, is constant but for float32's rounding (2^-24 an entry).
LEAST_VARIATION = 1e-6


def deviations(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x - mean(x) along `dim`, and its squared length, with `dim` kept at size 1.

    Where x does not vary they are 0 and 1, and give no gradient: whatever divides by the length would turn rounding
    into a step that throws the student off, as with one whose last layer starts at 0.
    """
    apart = x - x.mean(dim=dim, keepdim=True)
    squared = apart.square().sum(dim=dim, keepdim=True)
    varies = squared > LEAST_VARIATION**2 * x.square().sum(dim=dim, keepdim=True)
    return torch.where(varies, apart, 0.0), torch.where(varies, squared, 1.0)
