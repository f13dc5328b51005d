"""What a loss works out once from the teacher's embeddings of the whole pool, without a matrix of N x N."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ROWS = 4096
# Similarities that are held at a time: 256 MiB of float32.
MOST_SIMILARITIES = 2**26
# Embeddings are cached in fp16: what varies by less than its 11 bits of significand is rounding.
FP16_ROUNDING = 2.0**-11


def mean_and_std(embedding_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) standard deviation of each column in float64, T each; 0 where only rounding varies."""
    num_rows = len(embedding_NT)
    chunks: tuple[Tensor, ...] = torch.split(embedding_NT, CHUNK_ROWS)
    mean_T = torch.stack([chunk.double().sum(dim=0) for chunk in chunks]).sum(dim=0) / num_rows
    squares_T = torch.stack([(chunk.double() - mean_T).square().sum(dim=0) for chunk in chunks]).sum(dim=0)
    variance_T = squares_T / num_rows
    noise_T = (mean_T.square() + variance_T) * FP16_ROUNDING**2
    return mean_T, torch.where(variance_T > noise_T, variance_T, 0.0).sqrt()


def nearest_neighbours(embedding_NT: Tensor, num_neighbours: int) -> Tensor:
    """Each row's neighbours by cosine, nearest first and without itself: N x k, k = min(num_neighbours, N - 1).

    Exact, N^2 T multiplications, a strip of rows at a time.
    """
    unit_NT = F.normalize(embedding_NT.float(), dim=1)
    num_rows = len(unit_NT)
    num_kept = min(num_neighbours, num_rows - 1)
    strip = max(1, MOST_SIMILARITIES // num_rows)
    found_Nk = torch.empty(num_rows, num_kept, dtype=torch.long, device=unit_NT.device)
    for start in range(0, num_rows, strip):
        cosine_RN = unit_NT[start : start + strip] @ unit_NT.T
        cosine_RN.diagonal(start).fill_(-torch.inf)
        found_Nk[start : start + strip] = cosine_RN.topk(num_kept, dim=1).indices
    return found_Nk
