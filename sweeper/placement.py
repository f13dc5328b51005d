"""Where the images and targets of a trial lie: in the device's memory, or on the host, from where batches are sent.

The choice is by bytes, when the training begins, and changes no batch: rows are the same wherever they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Of the device's memory that is free when a training begins. The rest is for models, activations and other lanes.
DEVICE_SHARE = 0.4


@dataclass(frozen=True)
class Placement:
    """What does not stay on the device is gathered row by row from the host's memory, or from the disk behind a map."""

    device: torch.device
    is_resident: bool = True

    def put(self, tensor: Tensor) -> Tensor:
        """The tensor where its rows will be asked for."""
        return tensor.to(self.device) if self.is_resident else tensor

    def rows(self, tensor: Tensor, index_B: np.ndarray) -> Tensor:
        """Rows of a tensor that was `put`, on the device."""
        index = torch.from_numpy(index_B)
        if self.is_resident:  # several times faster than indexing with brackets, on a CPU
            return tensor.index_select(0, index.to(self.device, non_blocking=True))
        shape = (len(index), *tensor.shape[1:])
        return self.sent(shape, tensor.dtype, lambda rows: torch.index_select(tensor, 0, index, out=rows))

    def sent(self, shape: Sequence[int], dtype: torch.dtype, fill: Callable[[Tensor], object]) -> Tensor:
        """A tensor on the device that `fill` writes on the host.

        It goes through pinned memory, which the device reads while the host goes on: torch keeps each buffer until its
        copy is done.
        """
        rows = torch.empty(tuple(shape), dtype=dtype, pin_memory=self.device.type == "cuda")
        fill(rows)
        return rows.to(self.device, non_blocking=True)


ON_CPU = Placement(torch.device("cpu"))


def placement(num_bytes: int, device: torch.device) -> Placement:
    """On the device if a share of its free memory holds them; on a CPU the host is the device."""
    return Placement(device, device.type != "cuda" or num_bytes <= DEVICE_SHARE * _free_bytes(device))


def _free_bytes(device: torch.device) -> int:
    """What the driver has left, and what torch took from it and does not use."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
