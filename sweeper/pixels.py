"""How an image becomes the square that every model sees, in training, from a generator and in `predict` alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from sweeper.wording import one_line

MAX_UNREADABLE = 0.01  # of a dataset's images; more end a run before they are paid for


def fit_square(image: Image.Image | npt.NDArray[np.uint8], size: int) -> bytes:
    """The centre square, resized with Pillow's bicubic filter, which is antialiased.

    Cutting first keeps a very long image from becoming a huge one when its short side is enlarged.

    Args:
        image: RGB; an array is [H, W, 3].

    Returns:
        Raw uint8 RGB of `size` x `size` x 3, row by row: what the `image` column holds.
    """
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    square = picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return square.tobytes()


def why_unreadable(error: Exception) -> str:
    """One line; Pillow's message for unknown formats is the address of a buffer."""
    text = one_line(str(error), 200)
    if type(error).__name__ == "UnidentifiedImageError":
        text = "not an image format that Pillow knows"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
