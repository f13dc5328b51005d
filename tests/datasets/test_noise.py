"""Random images: the same wherever they are drawn, learnable by class, and as many as were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from sweeper.datasets import noise


def pixels(config: noise.Config, seed: int = 0) -> np.ndarray:
    return np.stack([np.asarray(image) for image in noise.decode(config, noise.index(config, seed).sources)])


def test_the_splits_have_the_sizes_that_were_asked_for_and_train_has_every_class() -> None:
    found = noise.index(noise.Config(classes=7, train=20, val=3, test=9), 0)
    assert found.split_counts() == {"train": 20, "val": 3, "test": 9}
    train = [label for label, split in zip(found.labels.tolist(), found.splits, strict=True) if split == "train"]
    assert set(train) == set(range(7))
    assert len(found.class_names) == 7


def test_images_are_drawn_alike_in_any_order_and_differ_between_samples_seeds_and_splits() -> None:
    config = noise.Config(classes=3, train=6, val=3, test=3, image_size=8)
    images = pixels(config)
    assert images.shape == (12, 8, 8, 3)
    assert images.dtype == np.uint8
    assert len({image.tobytes() for image in images}) == 12
    sources = noise.index(config, 0).sources
    again = [np.asarray(image) for image in noise.decode(config, sources[::-1])]
    assert np.array_equal(np.stack(again[::-1]), images)
    assert not np.array_equal(pixels(config, 1), images)


def test_a_class_can_be_told_by_its_colour() -> None:
    config = noise.Config(classes=5, train=25, val=25, test=2, image_size=8)
    found, means = noise.index(config, 0), pixels(config).mean(axis=(1, 2))
    centres = np.stack([means[:25][found.labels[:25] == label].mean(0) for label in range(5)])
    nearest = np.linalg.norm(means[25:50, None] - centres, axis=-1).argmin(1)
    assert (nearest == found.labels[25:50]).mean() > 0.8


def test_names_may_be_given_and_none_at_all_make_an_unlabelled_pool() -> None:
    assert noise.index(noise.Config(classes=("cat", "dog")), 0).class_names == ("cat", "dog")
    pool = noise.index(noise.Config(classes=0, train=5), 0)
    assert pool.class_names == ()
    assert pool.split_counts() == {"train": 5, "val": 0, "test": 0}


@pytest.mark.parametrize("classes", [1, -1, ("cat", "cat"), ("cat",)])
def test_classes_that_are_no_classes_are_refused(classes: object) -> None:
    with pytest.raises(ValidationError, match="classes"):
        noise.Config.model_validate({"kind": "noise", "classes": classes})
