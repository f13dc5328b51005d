"""The gradient of a step's batch: of the whole at once, or in halves where the device's memory does not hold it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sweeper.feeding import BatchStream
from sweeper.outcome import TrialFailed

HALVES = 2
LEAST_BATCH = 4  # losses over pairs need two images in each half


class Gradient:
    """Backward passes over the batches of a stream.

    A batch that does not fit is halved once, and so is every one after it: the parts are drawn like those of two
    data-parallel workers, and the optimiser sees the mean of their gradients. Statistics over a batch (batch norm,
    contrastive losses) are then those of a half. Data-parallel workers wait for each other in the backward pass, where
    one of them cannot try again alone: theirs fails.

    Args:
        model: gives the loss of a batch.
        can_halve: whether this is the only worker.
    """

    def __init__(self, model: nn.Module, stream: BatchStream, precision: str, *, can_halve: bool) -> None:
        self.model, self.stream, self.precision = model, stream, precision
        self.can_halve = can_halve and stream.batch_size >= LEAST_BATCH
        self.parts = 1

    def of(self, start: int, progress: float) -> Tensor:
        """Leave the gradient of the batch at sample position `start` in the parameters; returns its loss, detached.

        Raises:
            TrialFailed: it does not fit in halves either.
            torch.OutOfMemoryError: it does not fit and cannot be halved.
        """
        if self.parts > 1 or not self.can_halve:
            return self._accumulated(start, progress)
        try:
            return self._accumulated(start, progress)
        except (torch.OutOfMemoryError, MemoryError):
            self.parts = HALVES
        # not in the handler: as long as the error is alive it holds the graph that did not fit
        self.model.zero_grad(set_to_none=True)
        if self.stream.device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            return self._accumulated(start, progress)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise TrialFailed(f"out of memory, with the batch in halves too: {error}") from error

    def _accumulated(self, start: int, progress: float) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.stream.device)
        for part in range(self.parts):
            with self._autocast():
                loss = self.model(self.stream.batch(start, part, self.parts), progress) / self.parts
            loss.backward()
            total += loss.detach()
        return total

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "bf16":
            return torch.autocast(self.stream.device.type, dtype=torch.bfloat16)
        return nullcontext()
