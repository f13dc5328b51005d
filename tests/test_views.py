"""Views: the law of the crops, their independence of everything but their key, and the pixels they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import stats
from torch.nn.functional import avg_pool2d
from torchvision.transforms import v2

from sweeper.fingerprint import fingerprint
from sweeper.views import ViewConfig, apply_views, counter_uniform, draw_views, sample_key

KEYS = np.array([sample_key(f"cat/{i}.png") for i in range(3000)], dtype=np.uint64)

PINNED_KEY = 904424096894533348
PINNED_VIEWS = [
    [[0.0, 0.0, 1.0, 1.0, 0.0], [0.2200979, 0.0438337, 0.7354686, 0.8849911, 0.0]],
    [[0.176471, 0.0441118, 0.7731774, 0.9118658, 1.0], [0.0173309, 0.1371537, 0.6225656, 0.571413, 0.0]],
]


def smooth_images(count: int, size: int) -> torch.Tensor:
    """Waves of at least 16 pixels' length, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.meshgrid(torch.arange(size) / 16, torch.arange(size) / 16, indexing="ij")
    phases = torch.rand(count, 3, 4, 1, 1, generator=generator) * 6.28
    waves = [torch.sin(x + phases[:, :, 0]), torch.sin(y + phases[:, :, 1]), torch.sin(0.7 * (x - y) + phases[:, :, 2])]
    return 0.5 + sum(waves) / 6


def box(top: float, left: float, height: float, width: float, flip: float = 0.0) -> torch.Tensor:
    return torch.tensor([[top, left, height, width, flip]])


# ------------------------------------------------------------------------------------------------- parameters


def test_splitmix64_is_the_published_one() -> None:
    # First outputs of the reference implementation (Vigna, splitmix64.c) for the seeds 0 and 1234567.
    assert counter_uniform(0) == (0xE220A8397B1DCDAF >> 11) * 2.0**-53
    assert counter_uniform(1234567) == (6457827717110365317 >> 11) * 2.0**-53


def test_pinned_stream() -> None:
    assert sample_key("cat/1.png") == PINNED_KEY
    keys = np.array([sample_key("cat/1.png"), sample_key("dog/2.png")], dtype=np.uint64)
    drawn = draw_views(ViewConfig(crop_scale=(0.2, 1.0), flip=True), 7, keys, np.array([[0, 1], [2, 1000]]))
    np.testing.assert_allclose(drawn, PINNED_VIEWS, rtol=0, atol=1e-6)


def test_view_depends_on_seed_key_and_number_only() -> None:
    config = ViewConfig(crop_scale=(0.3, 1.0), flip=True)
    table = draw_views(config, 5, KEYS[:50], np.tile(np.arange(12), (50, 1)))
    assert table.shape == (50, 12, 5)
    assert table.dtype == np.float32
    order = np.random.default_rng(0).permutation(50)[:20]
    numbers = order % 12
    np.testing.assert_array_equal(draw_views(config, 5, KEYS[order], numbers), table[order, numbers])
    more = ViewConfig(crop_scale=(0.3, 1.0), flip=True, per_image=3)
    np.testing.assert_array_equal(draw_views(more, 5, KEYS[:50], np.full(50, 11)), table[:, 11])
    assert np.isfinite(draw_views(config, 5, KEYS[:3], np.array([10**12, 2**62, 8]))).all()
    other = draw_views(config, 6, KEYS[:50], np.tile(np.arange(12), (50, 1)))
    assert not (other[:, 1:, :2] == table[:, 1:, :2]).any()


def test_flip_does_not_move_the_crops() -> None:
    number = np.ones(len(KEYS), dtype=np.int64)
    plain = draw_views(ViewConfig(), 1, KEYS, number)
    flipped = draw_views(ViewConfig(flip=True), 1, KEYS, number)
    np.testing.assert_array_equal(plain[:, :4], flipped[:, :4])
    assert not plain[:, 4].any()
    assert set(np.unique(flipped[:, 4])) == {0.0, 1.0}
    assert abs(flipped[:, 4].mean() - 0.5) < 4 * 0.5 / np.sqrt(len(KEYS))


def test_view_0_is_canonical_for_every_config() -> None:
    drawn = draw_views(ViewConfig(crop_scale=(0.1, 0.2), flip=True), 3, KEYS, np.zeros(len(KEYS), dtype=np.int64))
    assert (drawn == np.array([0, 0, 1, 1, 0], dtype=np.float32)).all()


def test_area_ratio_and_place_follow_their_uniform_laws() -> None:
    # A share of 0.5 fits at every ratio up to 4/3, so that nothing is drawn again and the laws are exact.
    config = ViewConfig(crop_scale=(0.1, 0.5))
    top, left, height, width, _ = draw_views(config, 0, KEYS, np.ones(len(KEYS), dtype=np.int64)).astype(float).T
    for sample, low, high in (
        (height * width, 0.1, 0.5),
        (np.log(width / height), np.log(3 / 4), np.log(4 / 3)),
        (top / (1 - height), 0, 1),
        (left / (1 - width), 0, 1),
    ):
        assert stats.kstest(sample, stats.uniform(low, high - low).cdf).pvalue > 0.01
    assert abs(np.corrcoef(top / (1 - height), left / (1 - width))[0, 1]) < 0.06


def test_law_where_crops_stick_out_is_torchvisions() -> None:
    config = ViewConfig(crop_scale=(0.5, 1.0))
    mine = draw_views(config, 0, KEYS, np.ones(len(KEYS), dtype=np.int64)).astype(float)
    assert (mine[:, :2] >= 0).all()
    assert (mine[:, :2] + mine[:, 2:4] <= 1 + 1e-6).all()
    torch.manual_seed(0)
    size = 4096
    crop = v2.RandomResizedCrop(32, scale=config.crop_scale, ratio=config.crop_ratio)
    theirs = [crop.make_params([torch.empty(1, size, size, device="meta")]) for _ in range(len(KEYS))]
    theirs = np.array([[p["height"] / size, p["width"] / size] for p in theirs])
    assert stats.ks_2samp(mine[:, 2] * mine[:, 3], theirs.prod(axis=1)).pvalue > 0.01
    assert stats.ks_2samp(mine[:, 3] / mine[:, 2], theirs[:, 1] / theirs[:, 0]).pvalue > 0.01


@pytest.mark.parametrize(
    ("ratio", "height", "width"), [((1.0, 1.0), 1.0, 1.0), ((2.0, 2.0), 0.5, 1.0), ((0.5, 0.5), 1.0, 0.5)]
)
def test_impossible_crop_becomes_the_largest_centred_one(
    ratio: tuple[float, float], height: float, width: float
) -> None:
    drawn = draw_views(ViewConfig(crop_scale=(1, 1), crop_ratio=ratio), 0, KEYS[:5], np.ones(5, dtype=np.int64))
    np.testing.assert_allclose(drawn[:, 2:4], [[height, width]] * 5)


@pytest.mark.parametrize(
    "bad",
    [
        {"crop_scale": (0, 1)},
        {"crop_scale": (0.9, 0.5)},
        {"crop_ratio": (2, 1)},
        {"per_image": 0},
        {"flips": True},
        {"match": "teacher"},
        {"match": "fixed", "per_image": 1},
        {"jitter": {"hue": 0.51}},
        {"jitter": {"contrast": -0.1}},
    ],
)
def test_config_refuses(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(bad))):
        ViewConfig.model_validate(bad)


def test_what_is_not_used_stands_in_no_fingerprint() -> None:
    """Keys of targets and ids of runs from before there was jitter and `match` hold for what asks for neither."""
    before = {"per_image": 3, "crop_scale": [0.5, 1.0], "crop_ratio": [3 / 4, 4 / 3], "flip": True}
    plain = ViewConfig(per_image=3, flip=True)
    unused = ViewConfig.model_validate({"per_image": 3, "flip": True, "jitter": {"hue": 0}, "match": "same"})
    assert plain.model_dump(mode="json") == unused.model_dump(mode="json") == before
    assert fingerprint(plain) == fingerprint(unused) == fingerprint(before)
    used = [{"jitter": {"hue": 0.1}}, {"jitter": {"hue": 0.2}}, {"jitter": {"contrast": 0.1}}, {"match": "fixed"}]
    others = [ViewConfig.model_validate({"per_image": 3, "flip": True, **change}) for change in used]
    assert len({fingerprint(config) for config in (plain, *others)}) == 5
    assert [ViewConfig.model_validate(config.model_dump(mode="json")) for config in others] == others


def test_draw_refuses_shapes_and_negative_numbers() -> None:
    with pytest.raises(ValueError, match=r"\(3,\) and \(2,\)"):
        draw_views(ViewConfig(), 0, KEYS[:3], np.zeros(2, dtype=np.int64))
    with pytest.raises(ValueError, match="start at 0; got -1"):
        draw_views(ViewConfig(), 0, KEYS[:2], np.array([0, -1]))


# ------------------------------------------------------------------------------------------------- pixels

ROUNDING = 1e-5  # of a place in the image in float32


def test_canonical_view_at_the_same_size_is_the_image() -> None:
    bytes_BCHW = torch.randint(0, 256, (4, 3, 33, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    canonical = box(0, 0, 1, 1).expand(4, 5)
    for images_BCHW in (bytes_BCHW, bytes_BCHW.float() / 255):
        torch.testing.assert_close(
            apply_views(images_BCHW, canonical, 33), bytes_BCHW.float() / 255, atol=ROUNDING, rtol=0
        )
        half_BCHW = images_BCHW[..., :32, :32]
        assert torch.equal(apply_views(half_BCHW, canonical, 32), bytes_BCHW[..., :32, :32].float() / 255)


@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_flip_mirrors_what_is_seen(size: int) -> None:
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    if size == 24:
        flipped = apply_views(images, box(0, 0, 1, 1, 1).expand(2, 5), size)
        torch.testing.assert_close(flipped, images.flip(-1), atol=ROUNDING, rtol=0)
    crop = box(0.2, 0.1, 0.5, 0.7)
    mirrored = crop.clone()
    mirrored[:, 4] = 1
    plain = apply_views(images[:1], crop, size)
    torch.testing.assert_close(apply_views(images[:1], mirrored, size), plain.flip(-1), atol=ROUNDING, rtol=0)


@pytest.mark.parametrize(("top", "left", "height", "width"), [(5, 9, 40, 31), (0, 0, 64, 64), (24, 3, 40, 56)])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_crop_agrees_with_torchvision(top: int, left: int, height: int, width: int, size: int) -> None:
    images = smooth_images(2, 64)
    expected = v2.functional.resized_crop(images, top, left, height, width, [size, size], antialias=True)
    views = (box(top, left, height, width) / torch.tensor([64, 64, 64, 64, 1])).expand(2, 5)
    got = apply_views(images, views, size)
    # The outermost pixels differ: torchvision repeats the crop's edge where this reads the image beyond it.
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(got[inner], expected[inner], atol=0.01, rtol=0)
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0)


def test_shrinking_by_a_whole_number_is_the_mean_of_the_pixels() -> None:
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    got = apply_views(images, box(0, 0, 1, 1).expand(2, 5), 12)
    torch.testing.assert_close(got, avg_pool2d(images, 4), atol=1e-6, rtol=0)


def test_shrunk_crop_is_antialiased() -> None:
    stripes = (torch.arange(96) % 2).float().expand(1, 3, 96, 96)
    got = apply_views(stripes, box(0.1, 0.1, 0.75, 0.75), 16)  # 72 pixels to 16: stripes far beyond what 16 can show
    assert (got - 0.5).abs().max() < 0.15
    sampled = torch.nn.functional.interpolate(stripes[..., 10:82, 10:82], size=16, mode="nearest")
    assert (sampled - 0.5).abs().max() == 0.5


def natural_image(size: int) -> torch.Tensor:
    """Noise with the spectrum of photographs, amplitude 1 / frequency (Field 1987), mean 0.5 and deviation 0.2."""
    noise = torch.fft.rfft2(torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)))
    frequency = (torch.fft.fftfreq(size)[:, None] ** 2 + torch.fft.rfftfreq(size)[None] ** 2).sqrt()
    frequency[0, 0] = 1 / size
    image = torch.fft.irfft2(noise / frequency, s=(size, size))
    return ((image - image.mean()) / image.std() * 0.2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("side", [192, 168])
@pytest.mark.parametrize("shrinking", [2, 2.4, 3, 4, 6, 8])
def test_shrinking_agrees_with_torchvisions_antialiased_resize(shrinking: float, side: int) -> None:
    """Of the whole image and of a crop. By 2, plain bilinear sampling takes the mean of four pixels as well."""
    image, size = natural_image(192), round(side / shrinking)
    top, left = (16, 4) if side < 192 else (0, 0)
    whole = image[..., top : top + side, left : left + side]
    expected, aliased = (v2.functional.resize(whole, [size, size], antialias=sharp) for sharp in (True, False))
    got = apply_views(image, box(top, left, side, side) / torch.tensor([192, 192, 192, 192, 1]), size)
    inner = (..., slice(2, -2), slice(2, -2))

    def error(found: torch.Tensor) -> float:
        return float((found - expected)[inner].square().mean().sqrt())

    assert error(got) < 0.035
    if shrinking > 2:
        assert error(aliased) > 0.05
        assert error(got) < error(aliased) / 2


def test_a_view_does_not_depend_on_its_batch() -> None:
    images = torch.rand(9, 3, 20, 20, generator=torch.Generator().manual_seed(1))
    views = torch.from_numpy(draw_views(ViewConfig(flip=True), 0, KEYS[:9], np.arange(9)))
    together = apply_views(images, views, 32)
    alone = torch.cat([apply_views(images[i : i + 1], views[i : i + 1], 32) for i in range(9)])
    assert torch.equal(together, alone)
    assert together.min() >= 0
    assert together.max() <= 1


def test_same_pixels_whatever_the_resolution_they_are_cut_at() -> None:
    """A teacher at 48 px and a student at 24 px see the same part of the image."""
    images = smooth_images(6, 64)
    views = torch.from_numpy(draw_views(ViewConfig(flip=True), 0, KEYS[:6], np.arange(1, 7)))
    torch.testing.assert_close(
        avg_pool2d(apply_views(images, views, 48), 2), apply_views(images, views, 24), atol=0.01, rtol=0
    )
