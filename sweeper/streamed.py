"""Images that a node has no room for: read from the store while the training goes on, ahead of it.

A piece is a row group of one file, a few megabytes of neighbours in the dataset. Each pass takes the pieces in an order
of its own, those of one window are in memory together, and their images are shuffled among each other: a batch comes
from all over the dataset, and order and contents depend on (seed, pass) alone. A training may begin anywhere in it,
which an iterator over a dataset does not allow, and reading takes threads of the trial and no CPUs of Ray's, which the
lanes hold.

Shape letters: N samples, B batch, C channels, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

WINDOW_BYTES = 256 * 2**20  # of pixels; a training holds the window it is in and the next, where two meet a third
READERS = 4

_readers = ThreadPoolExecutor(READERS, thread_name_prefix="images")


@dataclass(frozen=True)
class StreamedImages:
    """Where each image lies: `row_N` within the piece `piece_N`. `read(piece)` gives all of a piece, uint8 BCHW."""

    piece_N: np.ndarray
    row_N: np.ndarray
    image_size: int
    read: Callable[[int], np.ndarray]

    def __len__(self) -> int:
        return len(self.piece_N)


class ShuffledPieces:
    """The images in the order of each pass, read ahead.

    Args:
        window_bytes: pixels that are shuffled among each other.
    """

    def __init__(self, images: StreamedImages, seed: int, window_bytes: int = WINDOW_BYTES) -> None:
        self.images, self.seed = images, seed
        self.num_rows = max(1, window_bytes // (3 * images.image_size**2))
        self._held: dict[int, Future[np.ndarray]] = {}
        self._pass = lru_cache(maxsize=3)(self._windows)

    def order(self, number: int) -> np.ndarray:
        """The samples of a pass, each once: window after window."""
        return self._pass(number)[0]

    def read_into(self, out_BCHW: np.ndarray, index_B: np.ndarray, number_B: np.ndarray) -> None:
        """Write these images, and begin to read what comes after them.

        Args:
            number_B: the pass in which each is seen.
        """
        piece_B = self.images.piece_N[index_B]
        self._turn_to(piece_B, number_B)
        for piece in np.unique(piece_B):
            here = np.flatnonzero(piece_B == piece)
            out_BCHW[here] = self._held[int(piece)].result()[self.images.row_N[index_B[here]]]

    def _windows(self, number: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Order of the samples, the pieces of each window, and the window of each piece."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        piece_N = self.images.piece_N
        counts = np.bincount(piece_N)
        pieces = rng.permutation(np.flatnonzero(counts))
        filled = np.cumsum(counts[pieces])
        _, window = np.unique((filled - counts[pieces]) // self.num_rows, return_inverse=True)
        window_of = np.zeros(len(counts), dtype=np.int64)
        window_of[pieces] = window
        shuffled = rng.permutation(len(piece_N))
        order: np.ndarray = shuffled[np.argsort(window_of[piece_N[shuffled]], kind="stable")]
        return order, [pieces[window == w] for w in range(int(window[-1]) + 1)], window_of

    def _turn_to(self, piece_B: np.ndarray, number_B: np.ndarray) -> None:
        """Read what is needed now, the rest of its windows and the next one, in this order; forget all others."""
        wanted: dict[int, None] = dict.fromkeys(piece_B.tolist())
        last = int(number_B.max())
        for number in np.unique(number_B).tolist():
            _, windows, window_of = self._pass(number)
            for window in np.unique(window_of[piece_B[number_B == number]]).tolist():
                wanted |= dict.fromkeys(windows[window].tolist())
        _, windows, window_of = self._pass(last)
        after = int(window_of[piece_B[number_B == last]].max()) + 1
        following = windows[after] if after < len(windows) else self._pass(last + 1)[1][0]
        wanted |= dict.fromkeys(following.tolist())
        for piece in self._held.keys() - wanted.keys():
            self._held.pop(piece).cancel()
        for piece in wanted:
            if piece not in self._held:
                self._held[piece] = _readers.submit(self.images.read, piece)
