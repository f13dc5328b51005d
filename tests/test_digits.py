"""The digits: no image is in two parts, and a sweep's seed moves nothing but the labelled training images."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sweeper.datasets import DatasetIndex, digits


def pixel_hash(image: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest()


def task(seed: int = 0, train_per_class: int = 10) -> tuple[digits.Config, DatasetIndex]:
    config = digits.Config(train_per_class=train_per_class)
    return config, digits.index(config, seed)


def decoded(config: digits.Config, found: DatasetIndex) -> list[np.ndarray]:
    images = digits.decode(config, found.sources)
    assert all(isinstance(image, Image.Image) for image in images)
    return [np.asarray(image) for image in images]


def test_no_image_is_in_two_parts_by_pixels() -> None:
    foundation, _ = digits.foundation()
    hashes = {pixel_hash(image): "foundation" for image in foundation}
    assert len(hashes) == len(foundation) == 1000
    for seed in range(5):  # every seed draws other training images from the same pool
        config, found = task(seed)
        for image, split in zip(decoded(config, found), found.splits, strict=True):
            assert hashes.setdefault(pixel_hash(image), split) == split


def test_every_image_of_the_dataset_is_in_exactly_one_part() -> None:
    from sklearn.datasets import load_digits

    images, _ = digits.foundation()
    rows = [np.asarray(digits.decode(digits.Config(), [f"digits:{row}"])[0]) for row in range(1797)]
    everything = Counter(pixel_hash(image) for image in rows)
    assert max(everything.values()) == 1
    assert len(images) + digits.NUM_TRAIN_POOL + digits.NUM_VAL + 447 == len(load_digits().images)


def test_parts_are_stratified() -> None:
    _, found = task()
    _, foundation_labels = digits.foundation()
    for split, size in (("train", 100), ("val", 200), ("test", 447)):
        labels = found.labels[[s == split for s in found.splits]]
        assert len(labels) == size
        counts = np.bincount(labels, minlength=10)
        assert counts.max() - counts.min() <= (0 if split == "train" else 4)
    assert np.ptp(np.bincount(foundation_labels)) <= 6


def test_the_seed_chooses_the_labelled_images_only() -> None:
    ids = {seed: _ids(task(seed, 3)[1]) for seed in (0, 1)}
    assert ids[0]["val"] == ids[1]["val"]
    assert ids[0]["test"] == ids[1]["test"]
    assert ids[0]["train"] != ids[1]["train"]
    assert task(0, 3)[1].content != task(1, 3)[1].content
    assert task(0, 3)[1].content == task(0, 3)[1].content


def test_more_labelled_images_contain_the_fewer() -> None:
    for few, more in ((1, 3), (3, 5), (5, 10)):
        assert _ids(task(7, few)[1])["train"] < _ids(task(7, more)[1])["train"]


def test_labels_and_pixels_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    config, found = task()
    for image, label, source in zip(decoded(config, found), found.labels, found.sources, strict=True):
        row = int(source.split(":")[1])
        assert label == data.target[row]
        assert image.shape == (8, 8, 3)
        np.testing.assert_allclose(image, np.repeat(data.images[row][..., None], 3, -1) / 16 * 255, atol=0.5)


def test_a_source_that_is_none_comes_back_as_its_exception() -> None:
    good, beyond, word = digits.decode(digits.Config(), ["digits:0", "digits:1797", "digits:zero"])
    assert isinstance(good, Image.Image)
    assert isinstance(beyond, IndexError)
    assert isinstance(word, ValueError)


@pytest.mark.parametrize("number", [0, 11])
def test_train_per_class_is_bounded_by_the_pool(number: int) -> None:
    with pytest.raises(ValidationError, match="train_per_class"):
        digits.Config(train_per_class=number)


def _ids(found: DatasetIndex) -> dict[str, set[str]]:
    return {
        s: {i for i, split in zip(found.sample_ids, found.splits, strict=True) if split == s} for s in set(found.splits)
    }
