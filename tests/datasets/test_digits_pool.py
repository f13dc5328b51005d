"""The unlabelled digits: none of the task's images, larger draws around smaller ones, and no label to read."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sweeper.datasets import DatasetIndex, digits, digits_pool


def pool(count: int = 1000, seed: int = 0) -> DatasetIndex:
    return digits_pool.index(digits_pool.Config(count=count), seed)


def pixel_hashes(found: DatasetIndex, **settings: int) -> list[str]:
    images = digits_pool.decode(digits_pool.Config(**settings), found.sources)
    assert all(isinstance(image, Image.Image) for image in images)
    return [hashlib.sha256(np.asarray(image).tobytes()).hexdigest() for image in images]


def test_no_image_of_the_task_is_in_the_pool_by_pixels() -> None:
    hashes = pixel_hashes(pool())
    assert len(set(hashes)) == len(hashes) == 1000
    for seed in range(5):  # every seed draws other training images
        task = digits.index(digits.Config(train_per_class=10), seed)
        assert not set(pixel_hashes(task)) & set(hashes)
        assert not set(task.sample_ids) & set(pool(seed=seed).sample_ids)


def test_the_whole_pool_is_what_the_embedded_teachers_saw() -> None:
    images, _ = digits.foundation()
    assert set(pixel_hashes(pool())) == {hashlib.sha256(image.tobytes()).hexdigest() for image in images}


@pytest.mark.parametrize("seed", [0, 7])
def test_a_larger_draw_contains_a_smaller_one(seed: int) -> None:
    draws = [set(pool(count, seed).sample_ids) for count in (2, 100, 500, 999, 1000)]
    assert [len(draw) for draw in draws] == [2, 100, 500, 999, 1000]
    assert all(few < more for few, more in itertools.pairwise(draws))


def test_the_seed_draws_other_images_and_the_same_seed_the_same() -> None:
    assert set(pool(100, 0).sample_ids) != set(pool(100, 1).sample_ids)
    assert pool(100, 0).content != pool(100, 1).content
    assert pool(100, 0).content == pool(100, 0).content
    assert pool(100).content != pool(101).content
    assert pool(1000, 0).content == pool(1000, 1).content, "all of them are the same for every seed"


def test_all_are_for_training_and_none_has_a_class() -> None:
    found = pool(30)
    assert found.class_names == ()
    assert found.split_counts() == {"train": 30, "val": 0, "test": 0}
    assert set(found.labels.tolist()) == {0}, "the digit itself is not told"
    assert found.sample_ids == sorted(found.sample_ids)


def test_decoded_in_the_order_of_the_sources() -> None:
    found = pool(5)
    rows = [int(sample_id.removeprefix("digits-")) for sample_id in found.sample_ids]
    for image, row in zip(digits_pool.decode(digits_pool.Config(), found.sources), rows, strict=True):
        np.testing.assert_array_equal(np.asarray(image), digits.images_of(np.array([row]))[0])


@pytest.mark.parametrize("count", [1, 0, 1001])
def test_a_count_beyond_the_pool_is_refused(count: int) -> None:
    with pytest.raises(ValidationError, match="count"):
        digits_pool.Config(count=count)
