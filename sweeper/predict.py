"""What a student says about image files: the folder read, the images prepared as for training, its classes by odds.

A folder is one that `sweeper export --model` or a run (`models/<trial>/`) wrote, and may have come from somebody else:
its weights are safetensors, and what its `config.json` says is checked before anything is made from it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, field_validator, model_validator

from sweeper.architecture import CONFIG_FILE, RESERVED_ARGS, WEIGHTS_FILE, first_line
from sweeper.datasets import ImageSize, image_folder
from sweeper.datasets._folders import images_below
from sweeper.errors import InputError
from sweeper.pixels import fit_square, why_unreadable
from sweeper.wording import one_line

if TYPE_CHECKING:
    from sweeper.student import Student

BATCH_SIZE = 64
_Positive = Annotated[FiniteFloat, Field(gt=0)]


class _Preprocessing(BaseModel):
    """The part of `pretrained_cfg` that decides what the model is shown."""

    input_size: tuple[Literal[3], ImageSize, ImageSize]
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[_Positive, _Positive, _Positive]

    @field_validator("input_size")
    @classmethod
    def _is_square(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if value[1] != value[2]:
            raise ValueError(f"{value[1]} x {value[2]} pixels are no square")
        return value


class _Described(BaseModel):
    """What `config.json` has to say of a student."""

    architecture: str
    num_classes: Annotated[int, Field(ge=2)]
    label_names: list[str]
    pretrained_cfg: _Preprocessing
    model_args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits(self) -> _Described:
        if len(self.label_names) != self.num_classes:
            raise ValueError(f"{len(self.label_names)} label_names for {self.num_classes} classes")
        taken = sorted(RESERVED_ARGS.intersection(self.model_args) - {"img_size"})
        if taken:
            raise ValueError(f"model_args: {', '.join(taken)} may not stand there")
        return self


@dataclass(frozen=True)
class Classifier:
    """A student and the names of its classes, in the order of its logits."""

    student: Student
    class_names: tuple[str, ...]

    def probabilities(self, squares: Sequence[bytes]) -> np.ndarray:
        """Softmax of the logits: float32 [N, K].

        Args:
            squares: raw uint8 RGB of the student's image size each, as `fit_square` gives them.
        """
        import torch

        size = self.student.image_size
        images_NHWC = np.frombuffer(b"".join(squares), dtype=np.uint8).reshape(-1, size, size, 3)
        images_NCHW = torch.from_numpy(images_NHWC.transpose(0, 3, 1, 2).copy()).float().div_(255)
        with torch.inference_mode():
            found: np.ndarray = self.student(images_NCHW).logits_BK.softmax(dim=1).numpy()
        return found


@dataclass(frozen=True)
class Prediction:
    """An image file and its classes, most probable first; or, with no class, why it could not be read."""

    path: Path
    classes: tuple[tuple[str, float], ...] = ()
    error: str = ""


def load(folder: str | Path) -> Classifier:
    """Read an exported student, on the CPU, in evaluation mode.

    Raises:
        InputError: it is none, or its weights are a pickle, or `config.json` asks for what a student has no need of.
    """
    folder = Path(folder)
    where = f"{one_line(str(folder))}: not a student"
    hint = "give a folder of `sweeper export --model`, or models/<trial> of a run"
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{where}: {missing[0]} is missing (weights are read in no other form); {hint}")
    try:
        names = _Described.model_validate_json((folder / CONFIG_FILE).read_bytes(), strict=True).label_names
    except (OSError, ValidationError) as error:
        raise InputError(f"{where}: {CONFIG_FILE}: {_why(error)}; {hint}") from error

    from sweeper import student as students

    try:
        student = students.load(folder)
    except InputError:
        raise
    except Exception as error:  # a made-up configuration can break an architecture anywhere
        raise InputError(f"{where}: {first_line(error)}; {hint}") from error
    if student.num_classes != len(names):
        raise InputError(f"{where}: {student.num_classes} logits for {len(names)} label_names; {hint}")
    return Classifier(student, tuple(names))


def _why(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors()[0]
    return one_line(": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]])), 200)


def image_files(paths: Iterable[str | Path]) -> Iterator[Path | Prediction]:
    """The files as given, and of each folder every image below it, sorted; a path with none is an error of its own."""
    for path in map(Path, paths):
        if not os.path.isdir(path):  # False, too, of what can be no path
            yield path
            continue
        try:
            found = sorted(images_below(path, image_folder.EXTENSIONS))
        except (OSError, InputError) as error:
            yield Prediction(path, error=str(getattr(error, "strerror", None) or error))
            continue
        yield from found
        if not found:
            yield Prediction(path, error=f"no image in this folder ({', '.join(image_folder.EXTENSIONS)})")


def predict(classifier: Classifier, paths: Iterable[str | Path], top: int = 1) -> Iterator[Prediction]:
    """A prediction for each image, in order, a batch at a time; those that can not be read come with their error.

    Args:
        paths: files, or folders that are searched to the bottom.
        top: how many classes; all, where there are fewer.
    """
    files = image_files(paths)
    while batch := [_read(item, classifier.student.image_size) for item in islice(files, BATCH_SIZE)]:
        squares = [square for _, square in batch if square is not None]
        probabilities = iter(classifier.probabilities(squares)) if squares else iter(())
        for found, square in batch:
            yield found if square is None else Prediction(found.path, _best(classifier, next(probabilities), top))


def _read(item: Path | Prediction, size: int) -> tuple[Prediction, bytes | None]:
    if isinstance(item, Prediction):
        return item, None
    image = image_folder.decode_file(str(item))
    if isinstance(image, Exception):
        return Prediction(item, error=getattr(image, "strerror", None) or why_unreadable(image)), None
    return Prediction(item), fit_square(image, size)


def _best(classifier: Classifier, probabilities_K: np.ndarray, top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-probabilities_K, kind="stable")[:top]
    return tuple((classifier.class_names[k], float(probabilities_K[k])) for k in order)
