"""Image folders: layouts, splits, identity, refusals, and what Pillow's formats decode to."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sweeper.datasets import complete_splits, decode_image, stratified_split
from sweeper.datasets.image_folder import Config, decode, index
from sweeper.errors import InputError


def write_images(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (6, 5), (number % 256, number // 256, len(folder.name))).save(folder / f"{number}.png")


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """40 cats and 20 dogs without splits."""
    root = tmp_path / "pets"
    write_images(root / "dog", 20)
    write_images(root / "cat", 40)
    return root


@pytest.fixture
def split(tmp_path: Path) -> Path:
    root = tmp_path / "split"
    for name, count in (("train", 8), ("val", 2), ("test", 3)):
        write_images(root / name / "dog", count)
        write_images(root / name / "cat", count)
    return root


def at(root: Path, **more: object) -> Config:
    return Config.model_validate({"root": str(root), **more})


# ------------------------------------------------------------------------------------------------- splits


def test_class_folders_are_split_alike_by_the_seed(plain: Path) -> None:
    found = index(at(plain), 0)
    assert found.class_names == ("cat", "dog")
    assert found.sample_ids == sorted(found.sample_ids)
    assert all(
        s.startswith(found.class_names[label] + "/") for s, label in zip(found.sample_ids, found.labels, strict=True)
    )
    assert Counter(zip(found.labels.tolist(), found.splits, strict=True)) == {
        (0, "train"): 28,
        (0, "val"): 6,
        (0, "test"): 6,
        (1, "train"): 14,
        (1, "val"): 3,
        (1, "test"): 3,
    }
    assert index(at(plain), 0).splits == found.splits
    assert index(at(plain), 1).splits != found.splits
    assert index(at(plain), 1).content != found.content


def test_given_splits_are_kept(split: Path) -> None:
    found = index(at(split), 0)
    assert found.class_names == ("cat", "dog")
    assert found.split_counts() == {"train": 16, "val": 4, "test": 6}
    assert all(s.split("/")[0] == name for s, name in zip(found.sample_ids, found.splits, strict=True))


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_spellings_of_val(split: Path, name: str) -> None:
    (split / "val").rename(split / name)
    assert index(at(split), 0).split_counts() == {"train": 16, "val": 4, "test": 6}


@pytest.mark.parametrize(
    ("absent", "counts"),
    [
        (["val"], {"train": 14, "val": 2, "test": 6}),
        (["test"], {"train": 14, "val": 4, "test": 2}),
        (["val", "test"], {"train": 12, "val": 2, "test": 2}),
    ],
)
def test_missing_split_is_taken_from_train(split: Path, absent: list[str], counts: dict[str, int]) -> None:
    for name in absent:
        shutil.rmtree(split / name)
    found = index(at(split), 0)
    assert found.split_counts() == counts
    moved = [s for s, name in zip(found.sample_ids, found.splits, strict=True) if name in ["train", *absent]]
    assert all(s.startswith("train/") for s in moved)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "test"):
        write_images(tmp_path / name, 4)
    assert index(at(tmp_path), 0).class_names == ("bus", "test", "train")


def test_stratified_split_gives_every_class_a_place_in_every_split() -> None:
    labels = np.repeat([0, 1, 2], [3, 5, 200])
    splits = np.array(stratified_split(labels, {"val": 0.4, "test": 0.4}, 0))
    assert Counter(splits[labels == 0]) == {"train": 1, "val": 1, "test": 1}
    assert Counter(splits[labels == 1]) == {"train": 1, "val": 2, "test": 2}
    assert Counter(splits[labels == 2]) == {"train": 40, "val": 80, "test": 80}
    assert Counter(stratified_split([0] * 4, {"val": 0.99}, 0)) == {"train": 1, "val": 3}
    # The order is random, not the one of the files.
    assert len({tuple(stratified_split(labels, {"val": 0.5}, seed)) for seed in range(5)}) == 5


def test_pinned_split() -> None:
    assert "".join(s[1] for s in stratified_split([0] * 8 + [1] * 4, {"val": 0.25, "test": 0.25}, 3)) == "rraearerrera"


def test_complete_splits_keeps_complete_ones() -> None:
    given = ["train", "val", "test", "train"]
    fractions = Config(root="x").fractions
    assert complete_splits(given, np.array([0, 0, 1, 1]), fractions, 0, ["a", "b"], "x") == given


# ------------------------------------------------------------------------------------------------- identity


def test_identity_is_independent_of_the_place(plain: Path, tmp_path: Path) -> None:
    before = index(at(plain), 0)
    moved = tmp_path / "elsewhere" / "deep"
    shutil.copytree(plain, moved)
    after = index(at(moved), 0)
    assert (after.content, after.sample_ids, after.splits) == (before.content, before.sample_ids, before.splits)
    assert after.sources != before.sources
    assert all(Path(source).is_absolute() for source in after.sources)


def test_identity_follows_bytes_names_and_fractions(plain: Path) -> None:
    contents = {index(at(plain), 0).content, index(at(plain, fractions={"val": 0.3}), 0).content}
    Image.new("RGB", (6, 5), (1, 2, 3)).save(plain / "dog" / "0.png")
    contents.add(index(at(plain), 0).content)
    (plain / "dog" / "0.png").rename(plain / "dog" / "00.png")
    contents.add(index(at(plain), 0).content)
    (plain / "dog").rename(plain / "wolf")
    contents.add(index(at(plain), 0).content)
    assert len(contents) == 5


def test_hidden_other_and_looping_files_are_passed_over(plain: Path) -> None:
    before = index(at(plain), 0)
    (plain / ".git").mkdir()
    (plain / "dog" / ".0.png").write_bytes(b"x")
    (plain / "dog" / "notes.txt").write_text("x")
    (plain / "README.md").write_text("x")
    os.symlink(plain, plain / "dog" / "loop")
    os.symlink(plain / "dog", plain / "dog" / "again")
    os.symlink(plain, plain / "all")
    after = index(at(plain), 0)
    assert after.sample_ids == before.sample_ids
    assert after.content == before.content


def test_nested_and_linked_images_count(plain: Path, tmp_path: Path) -> None:
    write_images(plain / "dog" / "old" / "2019", 2, first=100)
    write_images(tmp_path / "more", 3, first=200)
    os.symlink(tmp_path / "more", plain / "cat" / "more")
    found = index(at(plain), 0)
    assert {"dog/old/2019/100.png", "cat/more/200.png"} <= set(found.sample_ids)
    assert len(found) == 65


def test_extensions(plain: Path) -> None:
    (plain / "dog" / "0.png").rename(plain / "dog" / "0.PNG")
    (plain / "dog" / "1.png").rename(plain / "dog" / "1.jfif")
    assert len(index(at(plain), 0)) == 59
    assert index(at(plain, extensions=["jfif", ".PNG"]), 0).split_counts()["train"] == 42


# ------------------------------------------------------------------------------------------------- refusals


def refusal(root: Path, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        index(at(root, **more), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset.root: {root}: ")
    assert "\n" not in message
    return message


def test_no_folder(tmp_path: Path) -> None:
    assert f"no such folder (the nearest one that exists is {tmp_path})" in refusal(tmp_path / "a" / "b")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    assert "is a file; give a folder" in refusal(tmp_path / "x.parquet")


def test_empty_folder(tmp_path: Path) -> None:
    assert "the folder is empty; give a folder of class folders" in refusal(tmp_path)
    (tmp_path / ".hidden").mkdir()
    assert "the folder is empty" in refusal(tmp_path)


def test_images_without_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    assert "images lie directly in the folder and have no class" in refusal(tmp_path)


def test_class_folders_without_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.heic").write_bytes(b"x")
    message = refusal(tmp_path)
    assert "no image in a, b; found .heic, allowed are .jpg" in message


def test_one_class(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 9)
    assert "one class only (cat)" in refusal(tmp_path)


def test_too_few_images_names_each_class_and_its_count(plain: Path) -> None:
    write_images(plain / "emu", 2)
    (plain / "fox").mkdir()
    write_images(plain / "yak", 3)
    message = refusal(plain)
    assert "fox (no image at all)" in message
    (plain / "fox").rmdir()
    message = refusal(plain)
    assert "too few images to be in each of train, val, test: emu (2); a class needs at least 3" in message
    write_images(plain / "emu", 3)
    assert len(index(at(plain), 0)) == 66


def test_class_that_train_lacks(split: Path) -> None:
    write_images(split / "val" / "Cat", 2)
    write_images(split / "test" / "eel", 2)
    message = refusal(split)
    assert "Cat (val), eel (test): no training image" in message


def test_split_folder_without_images(split: Path) -> None:
    shutil.rmtree(split / "val" / "cat")
    shutil.rmtree(split / "val" / "dog")
    (split / "val" / "cat").mkdir()
    assert "the folder val holds no image" in refusal(split)


def test_split_folders_beside_others(split: Path) -> None:
    write_images(split / "extra", 2)
    message = refusal(split)
    assert "the split folders test, train, val lie beside extra" in message


def test_no_train_folder(split: Path) -> None:
    shutil.rmtree(split / "train")
    assert "found test, val but no train folder" in refusal(split)


def test_two_folders_for_one_split(split: Path) -> None:
    write_images(split / "valid" / "cat", 2)
    assert "both val and valid hold the split 'val'" in refusal(split)


@pytest.mark.parametrize("fractions", [{"val": 0}, {"val": 0.6, "test": 0.5}, {"train": 0.7}])
def test_impossible_fractions(fractions: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="fractions"):
        Config.model_validate({"root": "x", "fractions": fractions})


# ------------------------------------------------------------------------------------------------- decoding


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return np.asarray(image)


RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def test_rgb_grey_palette_and_1_bit() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(rgb))), rgb)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(RAMP))), np.repeat(RAMP[..., None], 3, axis=-1))
    two = Image.fromarray(np.where(RAMP > 100, 255, 0).astype(np.uint8))
    np.testing.assert_array_equal(pixels(encoded(two.convert("1")))[..., 1], np.asarray(two))
    colours = Image.fromarray(rgb // 128 * 255).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    np.testing.assert_array_equal(pixels(encoded(colours, "GIF")), rgb // 128 * 255)


def test_transparency_becomes_white() -> None:
    rgba = np.zeros((1, 3, 4), dtype=np.uint8)
    rgba[0] = [[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]
    expected = [[200, 0, 0], [255, 255, 255], [244, 204, 204]]
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(rgba)))[0], expected)
    grey = Image.fromarray(np.array([[[90, 255], [90, 0]]], dtype=np.uint8), "LA")
    np.testing.assert_array_equal(pixels(encoded(grey))[0], [[90] * 3, [255] * 3])
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(encoded(palette, transparency=1))[0], [[10, 20, 30], [255] * 3])


def test_cmyk() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = pixels(encoded(cmyk, "TIFF"))
    np.testing.assert_array_equal(red[8, 8], [255, 0, 0])


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = (np.arange(48, dtype=np.uint16).reshape(6, 8) * 1000).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), form))[..., 0], np.round(values / 257))
    dark = np.full((4, 4), 200, dtype=np.uint16)  # dark, and not an 8-bit image in disguise
    assert pixels(encoded(Image.fromarray(dark))).max() == 1


def test_float_images() -> None:
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(4, 6)
    np.testing.assert_array_equal(pixels(encoded(Image.fromarray(values), "TIFF"))[..., 2], np.round(values * 255))
    assert "allowed: 0 to 1" in str(decode_image(encoded(Image.fromarray(values * 7), "TIFF")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[:8, :8] = 255  # a white corner, which each orientation puts somewhere else
    got = pixels(encoded(Image.fromarray(stored), "PNG", exif=exif))[..., 0]
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: stored.T[:, ::-1],
        7: stored.T[::-1, ::-1],
        8: stored.T[::-1],
    }[orientation]
    np.testing.assert_array_equal(got, expected)


def test_broken_metadata_do_not_break_the_pixels() -> None:
    data = encoded(
        Image.fromarray(RAMP), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff" + b"\xee" * 30, quality=95
    )
    assert pixels(data).shape == (6, 8, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP"])
def test_truncated_file_is_an_error(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(noise), form, **({"exif": exif} if form in ("PNG", "JPEG", "WEBP") else {}))
    assert isinstance(decode_image(data[: len(data) // 2]), Exception)
    assert isinstance(decode_image(data[:20]), Exception)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, b"GIF89a", b"\xff\xd8\xff"])
def test_corrupt_bytes_are_an_error(data: bytes) -> None:
    assert isinstance(decode_image(data), Exception)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [10_001, 12_000, 60_000])
def test_decompression_bombs_are_refused(side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    bomb += struct.pack(">I", 1000) + b"IDAT" + bytes(1000)
    answer = decode_image(bomb)
    assert isinstance(answer, Exception)
    assert "pixels" in str(answer)


def test_decode_keeps_order_and_returns_errors(plain: Path) -> None:
    (plain / "cat" / "bad.png").write_bytes(b"nothing")
    sources = [str(plain / "dog" / "3.png"), str(plain / "cat" / "bad.png"), str(plain / "none.png")]
    first, bad, none = decode(at(plain), sources)
    assert isinstance(first, Image.Image)
    assert first.getpixel((0, 0)) == (3, 0, 3)
    assert isinstance(bad, Exception)
    assert isinstance(none, FileNotFoundError)
