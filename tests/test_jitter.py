"""Colour jitter: torchvision's operations and law, a factor a sample; and what is drawn besides stays what it was."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from sweeper import jitter
from sweeper.jitter import NEUTRAL, NO_JITTER, JitterConfig
from sweeper.views import CANONICAL, ViewConfig, apply_views, draw_views, sample_key

KEYS = np.array([sample_key(f"cat/{i}.png") for i in range(3000)], dtype=np.uint64)
STRONG = JitterConfig(brightness=0.8, contrast=0.6, saturation=1.5, hue=0.5)
OPERATIONS: tuple[Any, ...] = (
    v2.functional.adjust_brightness,
    v2.functional.adjust_contrast,
    v2.functional.adjust_saturation,
    v2.functional.adjust_hue,
)
PINNED_FACTORS = [0.7649502, 1.0685930, 1.6049378, 0.3265824]


def images(count: int = 24) -> torch.Tensor:
    """Noise, and what a hue is not defined for or lies at its ends: greys, black, white, pure colours, few levels."""
    made = torch.rand(count, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    made[0] = made[0, :1]
    made[1, :, :5], made[1, :, 5:10] = 0, 1
    made[2] = made[2].round()
    made[3] = (made[3] * 4).round() / 4
    return made


def some_factors(count: int = 24) -> torch.Tensor:
    drawn = jitter.factors(STRONG, np.random.default_rng(0).random((count, 4)))
    drawn[4], drawn[5] = [0, 1, 1, 0], [1, 0, 0, -0.5]  # the ends of what can be drawn
    drawn[6] = [1.8, 1.6, 2.5, 0.5]
    return torch.from_numpy(drawn).float()


def one_by_one(pixels_BCHW: torch.Tensor, factors_B4: torch.Tensor) -> torch.Tensor:
    done = []
    for image, row in zip(pixels_BCHW, factors_B4.tolist(), strict=True):
        for operation, factor in zip(OPERATIONS, row, strict=True):
            image = operation(image, factor)
        done.append(image)
    return torch.stack(done)


def test_a_batch_is_torchvisions_operations_one_image_at_a_time() -> None:
    got = jitter.adjust(images(), some_factors())
    torch.testing.assert_close(got, one_by_one(images(), some_factors()), rtol=0, atol=5e-6)


@pytest.mark.parametrize("place", range(4), ids=[operation.__name__ for operation in OPERATIONS])
def test_each_operation_alone(place: int) -> None:
    alone = torch.tensor([NEUTRAL]).repeat(24, 1)
    alone[:, place] = some_factors()[:, place]
    got = jitter.adjust(images(), alone)
    torch.testing.assert_close(got, one_by_one(images(), alone), rtol=0, atol=5e-6)
    assert (got - images()).abs().mean() > 0.01


def test_neutral_factors_change_no_bit() -> None:
    assert torch.equal(jitter.adjust(images(), torch.tensor([NEUTRAL]).expand(24, 4)), images())


def test_each_image_has_its_own_factors() -> None:
    together = jitter.adjust(images(), some_factors())
    for i in range(24):
        alone = jitter.adjust(images()[i : i + 1], some_factors()[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.4, 1.5])
def test_factors_follow_torchvisions_law(strength: float) -> None:
    config = JitterConfig(brightness=strength, contrast=strength / 2, saturation=strength / 3, hue=strength / 4)
    views = draw_views(ViewConfig(jitter=config), 0, KEYS, np.ones(len(KEYS), dtype=np.int64)).astype(float)
    theirs = v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue)
    bounds = (theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
    for drawn, (low, high) in zip(views[:, 5:].T, bounds, strict=True):
        assert stats.kstest(drawn, stats.uniform(low, high - low).cdf).pvalue > 0.01
    correlations = np.corrcoef(views[:, [0, 1, 5, 6, 7, 8]].T) - np.eye(6)
    assert np.abs(correlations).max() < 0.08


def test_crops_and_flips_are_those_without_jitter() -> None:
    numbers = np.tile(np.arange(6), (40, 1))
    plain = draw_views(ViewConfig(flip=True), 3, KEYS[:40], numbers)
    jittered = draw_views(ViewConfig(flip=True, jitter=STRONG), 3, KEYS[:40], numbers)
    assert plain.shape == (40, 6, 5)
    assert jittered.shape == (40, 6, 9)
    np.testing.assert_array_equal(jittered[..., :5], plain)
    assert (jittered[:, 0] == np.array([*CANONICAL, *NEUTRAL], np.float32)).all(), "view 0 is canonical"
    weaker = draw_views(ViewConfig(jitter=JitterConfig(hue=0.5)), 3, KEYS[:40], numbers)
    np.testing.assert_array_equal(weaker[..., 8], jittered[..., 8])
    assert (weaker[..., 5:8] == 1).all()


def test_no_strength_is_no_jitter() -> None:
    assert ViewConfig(jitter=JitterConfig()).num_parameters == ViewConfig(jitter=NO_JITTER).num_parameters == 5
    assert ViewConfig(jitter=JitterConfig(hue=0.01)).num_parameters == 9


def test_pinned_factors() -> None:
    (drawn,) = draw_views(ViewConfig(jitter=STRONG), 7, KEYS[1:2], np.array([1]))
    np.testing.assert_allclose(drawn[5:], PINNED_FACTORS, rtol=0, atol=1e-6)


def test_a_view_is_cut_first_and_then_jittered() -> None:
    """So that the mean which contrast turns on is that of what is seen."""
    views = torch.from_numpy(draw_views(ViewConfig(flip=True, jitter=STRONG), 0, KEYS[:24], np.arange(24)))
    seen = apply_views((images() * 255).byte(), views, 13)
    cut = apply_views((images() * 255).byte(), views[:, :5], 13)
    torch.testing.assert_close(seen, one_by_one(cut, views[:, 5:]), rtol=0, atol=5e-6)
    assert torch.equal(seen[0], cut[0])
    assert seen.min() >= 0
    assert seen.max() <= 1


@pytest.mark.gpu
def test_a_gpu_sees_the_same_colours() -> None:
    got = jitter.adjust(images().cuda(), some_factors().cuda())
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), jitter.adjust(images(), some_factors()), rtol=0, atol=5e-6)
