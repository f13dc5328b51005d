"""A few images of each class of another dataset: for rehearsals, and for asking what little data would do.

Which ones is drawn by the seed, and a larger draw contains a smaller one, so that learning curves over
`train_per_class` are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, SerializeAsAny, field_validator

from sweeper import registry
from sweeper.datasets import DatasetIndex
from sweeper.fingerprint import fingerprint
from sweeper.registry import Settings
from sweeper.views import counter_uniform

if TYPE_CHECKING:
    from PIL import Image


class Config(Settings):
    """`train_per_class` training images a class of the dataset `of`; of val and of test all, or `evaluated` images."""

    kind: Literal["subset"] = "subset"
    of: SerializeAsAny[Settings]
    train_per_class: Annotated[int, Field(ge=1)]
    evaluated: Annotated[int, Field(ge=1)] | None = None

    @field_validator("of", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("kind")
        if kind == "subset" or kind not in registry.kinds("datasets"):
            allowed = [name for name in registry.kinds("datasets") if name != "subset"]
            raise ValueError(f"needs the section of a dataset with kind: {', '.join(allowed)}; given {kind!r}")
        return registry.config_class("datasets", kind).model_validate(value)

    @property
    def image_size(self) -> int:
        """That of the whole."""
        return int(self.of.image_size)  # type: ignore[attr-defined]


def index(config: Config, seed: int) -> DatasetIndex:
    """The rows of the whole dataset that were drawn, in its order; one without labels counts as one class.

    Raises:
        InputError: as the whole dataset's.
    """
    whole: DatasetIndex = registry.load("datasets", config.of.kind).index(config.of, seed)  # type: ignore[attr-defined]
    order = counter_uniform(seed, np.arange(len(whole)))
    splits = np.asarray(whole.splits)
    kept = [_turns(np.flatnonzero(splits == "train"), whole.labels, order, per_class=config.train_per_class)]
    for split in ("val", "test"):
        kept.append(_turns(np.flatnonzero(splits == split), whole.labels, order, most=config.evaluated))
    rows = np.sort(np.concatenate(kept)).tolist()
    return DatasetIndex(
        class_names=whole.class_names,
        sample_ids=[whole.sample_ids[row] for row in rows],
        labels=whole.labels[rows],
        splits=[whole.splits[row] for row in rows],
        sources=[whole.sources[row] for row in rows],
        content=fingerprint({"whole": whole.content, "rows": rows}),
    )


def decode(config: Config, sources: Sequence[str]) -> list[Image.Image | Exception]:
    """As the whole dataset does."""
    found: list[Image.Image | Exception] = registry.load("datasets", config.of.kind).decode(config.of, sources)  # type: ignore[attr-defined]
    return found


def known_classes(config: Config) -> tuple[str, ...] | int | None:
    """What the whole dataset's kind knows."""
    module = registry.load("datasets", config.of.kind)  # type: ignore[attr-defined]
    found: tuple[str, ...] | int | None = module.known_classes(config.of) if hasattr(module, "known_classes") else None
    return found


def _turns(
    rows: npt.NDArray[np.intp],
    labels: npt.NDArray[np.int64],
    order: npt.NDArray[np.float64],
    *,
    per_class: int | None = None,
    most: int | None = None,
) -> npt.NDArray[np.intp]:
    """Of `rows` the first `per_class` of each class in the drawn order, or `most` of all, the classes taking turns."""
    drawn = rows[np.argsort(order[rows], kind="stable")]
    turn = np.empty(len(drawn), dtype=np.int64)
    for label in np.unique(labels[drawn]):
        of_class = labels[drawn] == label
        turn[of_class] = np.arange(of_class.sum())
    if per_class is not None:
        return drawn[turn < per_class]
    return drawn[np.argsort(turn, kind="stable")][:most]
