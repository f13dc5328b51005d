"""Labelled image datasets: one kind a file, `index` on the driver and `decode` in the tasks of Ray Data.

A kind module has
    Config(Settings)                        with `kind: Literal[...]` and `image_size: int`
    index(config, seed) -> DatasetIndex     raises InputError: what, got, allowed, the next step
    decode(config, sources) -> list[PIL.Image.Image in RGB | Exception]
        an unreadable image comes back as its exception, so that one broken file does not end a pass over millions.
    known_classes(config) -> tuple[str, ...] | int | None      may be left out
        names or number of the classes, as far as the settings alone say them: the data need not be there.
`index` reads names, labels and bytes but decodes nothing; it alone decides which split a sample belongs to.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from sweeper.errors import InputError
from sweeper.registry import Settings
from sweeper.views import counter_uniform
from sweeper.wording import one_line

if TYPE_CHECKING:
    from PIL import Image

SPLITS = ("train", "val", "test")
# As people spell them.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
MAX_NAME = 200  # characters of a name in a message
MAX_PIXELS = 100_000_000  # an image that claims more is refused before its pixels are unpacked
ImageSize = Annotated[int, Field(ge=8, le=4096)]
SplitShare = Annotated[float, Field(gt=0, lt=1)]
NumClasses = Annotated[int, Field(ge=2)] | None  # what the user expects; no part of a dataset's identity


@dataclass(frozen=True)
class DatasetIndex:
    """What a dataset holds, without its pixels. All per-sample fields have the length N and the same order.

    `sources` is read by the kind's own `decode` only and may hold absolute paths; `sample_ids` and `content` must not,
    since a dataset that is moved stays the same dataset.
    """

    class_names: tuple[str, ...]
    sample_ids: list[str]
    labels: npt.NDArray[np.int64]
    splits: list[str]
    sources: list[str]
    content: str

    def __post_init__(self) -> None:
        lengths = {len(self.sample_ids), len(self.labels), len(self.splits), len(self.sources)}
        assert len(lengths) == 1, f"per-sample fields differ in length: {sorted(lengths)}"
        assert set(self.splits) <= set(SPLITS), f"splits are {SPLITS}, got {sorted(set(self.splits))}"

    def __len__(self) -> int:
        return len(self.sample_ids)

    def split_counts(self) -> dict[str, int]:
        """Number of samples of each split, in the order train, val, test."""
        return {split: self.splits.count(split) for split in SPLITS}


class Fractions(Settings):
    """Shares that are split off for validation and test where the data has no such split; the rest is train."""

    val: SplitShare = 0.15
    test: SplitShare = 0.15

    @model_validator(mode="after")
    def _leaves_a_train_split(self) -> Fractions:
        if self.val + self.test >= 1:
            raise ValueError(f"val + test must stay below 1 to leave a train split; got {self.val} + {self.test}")
        return self


def stratified_split(
    labels: npt.ArrayLike, fractions: Mapping[str, float], seed: int, class_names: Sequence[str] | None = None
) -> list[str]:
    """Split every class alike: `fractions` of it go to the named splits, the rest to "train".

    Each class puts at least one sample into each split. The order within a class comes from a counter-based generator
    over (seed, position), so that it is the same with every version of every library.

    Args:
        labels: integers, shape [N].
        fractions: share of each split besides "train", such as `{"val": 0.15, "test": 0.15}`.
        class_names: how a message names the classes.

    Returns:
        A split for each sample, in the order of `labels`.

    Raises:
        InputError: a class has fewer samples than there are splits.
    """
    labels = np.asarray(labels, dtype=np.int64)
    order = counter_uniform(seed, np.arange(labels.size))
    splits = np.full(labels.size, "train", dtype=object)
    counts = np.bincount(labels, minlength=len(class_names or ()))
    classes = [c for c in range(len(counts)) if counts[c] or class_names is not None]
    needed = len(fractions) + 1
    small = [f"{c if class_names is None else class_names[c]} ({counts[c]})" for c in classes if counts[c] < needed]
    if small:
        raise InputError(
            f"too few images to be in each of {', '.join(['train', *fractions])}: {shorten(small)}; a class needs at "
            f"least {needed}: add images, remove the class, or give the splits yourself"
        )
    for label, count in zip(classes, counts[classes].tolist(), strict=True):
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(order[members], kind="stable")]
        start = 0
        for waiting, (split, fraction) in zip(range(len(fractions), 0, -1), fractions.items(), strict=True):
            # Rounded, but at least one, and one is left for each split that still waits (train is the last of them).
            take = min(max(1, round(fraction * count)), count - start - waiting)
            splits[members[start : start + take]] = split
            start += take
    return [str(split) for split in splits]


def complete_splits(
    splits: Sequence[str],
    labels: npt.NDArray[np.int64],
    fractions: Fractions,
    seed: int,
    class_names: Sequence[str],
    where: str,
) -> list[str]:
    """Keep the splits that the data has; take a missing "val" or "test" from train, stratified and by the seed.

    Args:
        splits: "train", "val" or "test" for each sample.
        where: what a message begins with: the key of the space file and the path.

    Raises:
        InputError: a class without a training image, or with too few to be in each split.
    """
    given = np.asarray(splits)
    train = np.flatnonzero(given == "train")
    untaught = sorted(set(range(len(class_names))) - set(labels[train].tolist()))
    if untaught:
        seen = {c: ", ".join(sorted(set(given[labels == c]))) or "no image at all" for c in untaught}
        found = [f"{class_names[c]} ({seen[c]})" for c in untaught]
        raise InputError(
            f"{where}: {shorten(found)}: no training image; every class needs some: "
            "add them, or remove the class from the other splits too"
        )
    missing = {"val": fractions.val, "test": fractions.test}
    missing = {split: share for split, share in missing.items() if split not in set(splits)}
    completed = list(splits)
    if missing:
        try:
            drawn = stratified_split(labels[train], missing, seed, class_names)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        for row, split in zip(train, drawn, strict=True):
            completed[row] = split
    return completed


def check_num_classes(names: Sequence[str], expected: int | None, where: str) -> None:
    """Refuse what no classifier can be trained on, and another number of classes than the user expects.

    Raises:
        InputError: one class, or not `expected` ones.
    """
    if len(names) < 2:
        raise InputError(f"{where}: one class only ({shorten(names)}); a classifier needs at least two")
    if expected is not None and len(names) != expected:
        raise InputError(
            f"{where}: {len(names)} classes ({shorten(names)}), but `dataset.num_classes` says {expected}; "
            "give the right data, or the right number"
        )


def decode_image(data: bytes) -> Image.Image | Exception:
    """Any file that Pillow reads as upright 8-bit RGB: the first frame of several; transparent pixels become white.

    What can not be read is returned as its exception, and so is what claims more than `MAX_PIXELS` or is a program.

    Args:
        data: the bytes of the whole file; one that ends early is an error, never half an image.
    """
    import io

    from PIL import Image

    try:
        # Pillow warns about odd palettes and metadata, and about the size before it is checked here.
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(data)) as image:
            if image.format == "EPS":
                return ValueError("a PostScript program, which is not run to see its image")
            if image.width * image.height > MAX_PIXELS:
                return ValueError(f"{image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are unpacked")
            image.load()
            return _to_rgb(_upright(image))
    # Pillow's plugins raise nearly anything (OSError, SyntaxError, struct.error, ...) on a broken file.
    except Exception as error:
        return error


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera's EXIF tag says. Metadata that cannot be read do not make the pixels unreadable."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        return _to_8_bit(image).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grayscale of 16 bits (Pillow's own conversion clips at 255 instead of scaling) or of floats in [0, 1].

    Raises:
        ValueError: values beyond that range, whose scale nobody can know.
    """
    from PIL import Image

    values = np.asarray(image)
    full = 1.0 if image.mode == "F" else 65535.0
    if not (values.min() >= 0 and values.max() <= full):
        found = f"{values.min():g} to {values.max():g}"
        raise ValueError(f"mode {image.mode} with values from {found}; allowed: 0 to {full:g}")
    levels = np.empty(values.shape, dtype=np.uint8)
    for row in range(len(values)):  # one at a time, since doubles take eight times the room
        levels[row] = np.round(values[row].astype(np.float64) * (255.0 / full))
    return Image.fromarray(levels)


def shorten(items: Sequence[str], limit: int = 8) -> str:
    """A list for a message: the first few on one line, and how many more there are."""
    more = f" and {len(items) - limit:,} more" if len(items) > limit else ""
    return ", ".join(one_line(item, MAX_NAME) for item in items[:limit]) + more


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """What the system refuses (a folder that may not be read, a name that is too long) as an InputError."""
    try:
        yield
    except OSError as error:
        name = f"{one_line(str(error.filename), MAX_NAME)}: " if error.filename else ""
        raise InputError(f"{where}: cannot be read: {name}{error.strerror or error}") from error


def given_path(text: str, where: str) -> Path:
    """The path that a setting names, `~` expanded.

    Raises:
        InputError: no path at all.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long; no such user; a NUL
        raise InputError(f"{where}: not a path: {getattr(error, 'strerror', None) or error}") from error
    return path
