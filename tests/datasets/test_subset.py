"""A few images of another dataset: paired draws, its own decoding, and its classes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pydantic import ValidationError

from sweeper import registry
from sweeper.datasets import DatasetIndex, noise, subset
from sweeper.registry import Settings

WHOLE = {"kind": "noise", "classes": 4, "train": 40, "val": 12, "test": 12, "image_size": 8}


def config(**settings: object) -> subset.Config:
    return subset.Config.model_validate({"kind": "subset", "of": WHOLE, "train_per_class": 2, **settings})


def rows(found: DatasetIndex, split: str) -> set[str]:
    return {name for name, own in zip(found.sample_ids, found.splits, strict=True) if own == split}


def test_each_class_has_as_many_training_images_as_asked_and_evaluation_is_whole_or_evenly_cut() -> None:
    found = subset.index(config(), 0)
    assert found.split_counts() == {"train": 8, "val": 12, "test": 12}
    assert np.bincount(found.labels[np.array(found.splits) == "train"]).tolist() == [2, 2, 2, 2]
    few = subset.index(config(evaluated=6), 0)
    assert few.split_counts() == {"train": 8, "val": 6, "test": 6}
    assert sorted(np.bincount(few.labels[np.array(few.splits) == "val"], minlength=4).tolist()) == [1, 1, 2, 2]


def test_a_larger_draw_contains_a_smaller_one_and_the_seed_draws_others() -> None:
    draws = [subset.index(config(train_per_class=n), 0) for n in (1, 3, 7, 10, 99)]
    assert [found.split_counts()["train"] for found in draws] == [4, 12, 28, 40, 40]
    assert all(rows(a, "train") < rows(b, "train") for a, b in itertools.pairwise(draws[:4]))
    assert len({found.content for found in draws[:4]}) == 4
    assert draws[3].content == draws[4].content


def test_images_are_those_of_the_whole_dataset() -> None:
    whole = noise.Config.model_validate(WHOLE)
    everything = noise.index(whole, 0)
    images = dict(zip(everything.sample_ids, noise.decode(whole, everything.sources), strict=True))
    found = subset.index(config(), 0)
    assert config().image_size == 8
    for name, image in zip(found.sample_ids, subset.decode(config(), found.sources), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(images[name]))


def test_what_is_no_dataset_is_refused() -> None:
    for wrong in ({"kind": "subset", "of": WHOLE, "train_per_class": 1}, {"kind": "nonsense"}, {}):
        with pytest.raises(ValidationError, match="needs the section of a dataset"):
            config(of=wrong)


def test_a_pool_without_labels_is_drawn_from_as_one_class() -> None:
    pool = {"kind": "noise", "classes": 0, "train": 9}
    found = subset.index(config(of=pool, train_per_class=4), 0)
    assert found.class_names == ()
    assert found.split_counts() == {"train": 4, "val": 0, "test": 0}


def test_what_it_says_in_a_file_reads_back_as_the_same() -> None:
    said = config(evaluated=3).model_dump(mode="json")
    family: type[Settings] = registry.config_class("datasets", "subset")
    assert family.model_validate(said) == config(evaluated=3)
    assert said["of"]["classes"] == 4
