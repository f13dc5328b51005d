"""Images as they come: odd ones are read rightly, broken and hostile ones are left out with a reason, in any container.

Each image stands in a folder, in a parquet file and in a tar, and all are asked for it.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sweeper.datasets import decode_image, image_folder, parquet, unlabelled_folder, webdataset
from sweeper.errors import InputError
from sweeper.ingest import ImageWorker
from sweeper.store import Store

RED, GREEN = (255, 0, 0), (0, 255, 0)
NAMES = [
    "line\nbreak.png",
    "\x1b[31mred.png",
    "\u65e5\u672c\u8a9e.png",
    "\u043a\u043e\u0442 \U0001f600.png",
    "-rf.png",
    "a,'b\".png",
    "\u202egnp.png",
]


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(side: int) -> bytes:
    """A whole black PNG of one bit a pixel: 30,000 x 30,000 of them in 110 kB."""
    packed = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    return png(side, side, 1, 0, b"".join(packed.compress(row) for _ in range(side)) + packed.flush())


def deep_rgb() -> bytes:
    """16 bits a channel, which Pillow cannot write."""
    row = b"\0" + struct.pack(">HHH", 65535, 32896, 0) * 8
    return png(8, 8, 16, 2, zlib.compress(row * 8))


def see_through() -> bytes:
    """A palette with one transparent colour, left, and a green one, right."""
    image = Image.new("P", (8, 8))
    image.putpalette([*RED, *GREEN])
    image.paste(1, (4, 0, 8, 8))
    return encoded(image, transparency=0)


def turned() -> bytes:
    """Stored with its red half on the left, to be turned by a quarter clockwise: red above."""
    image = Image.new("RGB", (16, 8), GREEN)
    image.paste(RED, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


def animated(form: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], lossless=True)


def noise(form: str) -> bytes:
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), form)


# What is read: its bytes, the size, and the colours in the upper left and the lower right corner.
READ: dict[str, tuple[bytes, tuple[int, int], tuple[int, ...], tuple[int, ...]]] = {
    "one pixel": (encoded(Image.new("RGB", (1, 1), RED)), (1, 1), RED, RED),
    "one column": (encoded(Image.new("RGB", (1, 500), RED)), (1, 500), RED, RED),
    "16-bit grey": (encoded(Image.fromarray(np.full((8, 8), 32896, np.uint16))), (8, 8), (128,) * 3, (128,) * 3),
    "16-bit colour": (deep_rgb(), (8, 8), (255, 128, 0), (255, 128, 0)),
    "1-bit": (encoded(Image.new("1", (8, 8), 1)), (8, 8), (255,) * 3, (255,) * 3),
    "palette": (see_through(), (8, 8), (255, 255, 255), GREEN),
    "CMYK": (encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"), (8, 8), RED, RED),
    "EXIF": (turned(), (8, 16), RED, GREEN),
    "GIF": (animated("GIF"), (8, 8), RED, RED),
    "WebP": (animated("WEBP"), (8, 8), RED, RED),
    "APNG": (animated("PNG"), (8, 8), RED, RED),
}
# What is left out, and a word of the reason.
LEFT_OUT: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "not an image format"),
    "text": (b"dear diary\n" * 50, "not an image format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image format"),
    "html": (b"<!doctype html><title>404</title>", "not an image format"),
    "truncated PNG": (noise("PNG")[:6000], "truncated"),
    "truncated JPEG": (noise("JPEG")[:2000], "truncated"),
    "only a header": (noise("PNG")[:20], ""),
    "bomb": (bomb(30_000), "900000000 pixels"),
    "just too large": (bomb(10_001), "10001 x 10001 pixels; at most 100,000,000"),
    "wide bomb": (png(2**31 - 1, 1, 8, 2, b""), "pixels"),
    "text bomb": (png(4, 4, 8, 0, b"", chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(5_000_000)))), "too large"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", "PostScript"),
    "no pixels": (b"GIF89a" + bytes(6) + b";", ""),
    "not a number": (encoded(Image.fromarray(np.full((4, 4), np.nan, np.float32)), "TIFF"), "from nan to nan"),
}


def from_folder(folder: Path, data: bytes) -> Image.Image | Exception:
    path = folder / "x.png"
    path.write_bytes(data)
    return image_folder.decode(image_folder.Config(root=str(folder)), [str(path)])[0]


def from_parquet(folder: Path, data: bytes) -> Image.Image | Exception:
    path = folder / "x.parquet"
    pq.write_table(pa.table({"image": [data], "label": [0]}), path)
    return parquet.decode(parquet.Config(path=str(path)), [f"{path}#0"])[0]


def from_shard(folder: Path, data: bytes) -> Image.Image | Exception:
    path = folder / "x.tar"
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("x.png")
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    return webdataset.decode(webdataset.Config(path=str(path)), [f"{path}#512+{len(data)}"])[0]


Container = Callable[[Path, bytes], Image.Image | Exception]
containers = pytest.mark.parametrize("container", [from_folder, from_parquet, from_shard])


@containers
@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("error")
def test_is_read_rightly(tmp_path: Path, container: Container, name: str) -> None:
    data, size, first, last = READ[name]
    image = container(tmp_path, data)
    assert isinstance(image, Image.Image), image
    assert (image.mode, image.size) == ("RGB", size)
    assert (image.getpixel((0, 0)), image.getpixel((size[0] - 1, size[1] - 1))) == (first, last)


@containers
@pytest.mark.parametrize("name", LEFT_OUT)
@pytest.mark.filterwarnings("error")
def test_is_left_out_with_its_reason(tmp_path: Path, container: Container, name: str) -> None:
    data, reason = LEFT_OUT[name]
    error = container(tmp_path, data)
    assert isinstance(error, Exception), error
    worker = ImageWorker(store=Store(str(tmp_path / "store")), prefix="data/x", dataset=image_folder.Config(root="."))
    path = tmp_path / "y.png"
    path.write_bytes(data)
    row = {
        "row": [0],
        "sample_id": ["y"],
        "label": pa.array([0], pa.int32()),
        "split": ["train"],
        "source": [str(path)],
    }
    summary = worker(pa.table(row))
    said = json.loads(summary["unreadable"])["y"]
    assert reason in said
    assert said.isprintable()
    assert " at 0x" not in said
    assert not any(summary["digests"])


def test_bombs_are_refused_before_they_take_room(tmp_path: Path) -> None:
    """The most memory that a fresh process ever had, with each of them decoded."""
    for number, (data, _) in enumerate(LEFT_OUT.values()):
        (tmp_path / f"{number}.png").write_bytes(data)
    code = """
import resource, sys
from sweeper.datasets import image_folder
from PIL import Image
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = [image_folder.decode_file(path) for path in sys.argv[1:]]
assert all(isinstance(image, Exception) for image in found)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    files = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50_000  # kB; the pixels of the largest would take 900,000


def write(folder: Path, count: int, first: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.new("RGB", (6, 5), (number % 256, number // 256, len(folder.name))).save(folder / f"{number}.png")


# ------------------------------------------------------------------------------------------------- names and links


def test_names_of_any_alphabet_are_kept(tmp_path: Path) -> None:
    for kind in ("\u732b", "dog\nwolf"):
        write(tmp_path / kind, 4)
        for name in NAMES:
            Image.new("RGB", (3, 3), RED).save(tmp_path / kind / name, "PNG")
    config = image_folder.Config(root=str(tmp_path))
    found = image_folder.index(config, 0)
    assert found.class_names == ("dog\nwolf", "\u732b")
    assert {f"\u732b/{name}" for name in NAMES} <= set(found.sample_ids)
    assert all(isinstance(image, Image.Image) for image in image_folder.decode(config, found.sources))


def test_a_message_shows_odd_names_on_one_line(tmp_path: Path) -> None:
    write(tmp_path / "dog\n\x1b[2J", 2)
    write(tmp_path / "\u732b", 2)
    with pytest.raises(InputError) as caught:
        image_folder.index(image_folder.Config(root=str(tmp_path)), 0)
    message = str(caught.value)
    assert "dog\\n\\x1b[2J (2), \u732b (2); a class needs" in message
    assert message.isprintable()


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", 4)
    write(tmp_path / "b", 4)
    (tmp_path / "a" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    with pytest.raises(InputError, match=r"the file name 'a/\\udcff\.png' is not valid UTF-8"):
        image_folder.index(image_folder.Config(root=str(tmp_path)), 0)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / name, 4)
        os.symlink("self.png", tmp_path / name / "self.png")
        os.symlink("self", tmp_path / name / "self")
        os.symlink("pong", tmp_path / name / "ping")
        os.symlink("ping", tmp_path / name / "pong")
        os.symlink("..", tmp_path / name / "up")
        os.symlink("nowhere.png", tmp_path / name / "gone.png")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("../dog", tmp_path / "cat" / "other")
    os.symlink("../cat", tmp_path / "dog" / "other")
    config = image_folder.Config(root=str(tmp_path))
    found = image_folder.index(config, 0)
    assert found.class_names == ("cat", "dog")
    assert len(found) == 2 * 2 * (4 + 2)  # each class' files, once as its own and once through the link
    answers = dict(zip(found.sample_ids, image_folder.decode(config, found.sources), strict=True))
    assert "symbolic links" in str(answers["cat/self.png"])
    assert isinstance(answers["cat/gone.png"], FileNotFoundError)


def test_links_that_multiply_are_refused(tmp_path: Path) -> None:
    """Twenty folders, each linked twice from the one before it: a million ways to the last."""
    root = tmp_path / "pool"
    for number in range(20):
        write(tmp_path / f"d{number}", 1)
        for name in ("left", "right"):
            os.symlink(f"../d{number + 1}", tmp_path / f"d{number}" / name)
    write(tmp_path / "d20", 1)
    root.mkdir()
    os.symlink("../d0", root / "all")
    with pytest.raises(InputError, match="symbolic links lead here in more than 100 ways"):
        unlabelled_folder.index(unlabelled_folder.Config(root=str(root)), 0)


def test_what_is_no_file_or_too_large_is_unreadable_and_never_waited_for(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, 4)
    os.mkfifo(tmp_path / "a" / "pipe.png")  # opening it would wait for somebody to write
    with (tmp_path / "a" / "vast.png").open("wb") as file:
        file.truncate(3 * 2**30)  # takes no room on the disk
    config = image_folder.Config(root=str(tmp_path))
    found = image_folder.index(config, 0)
    answers = dict(zip(found.sample_ids, image_folder.decode(config, found.sources), strict=True))
    assert "not a regular file" in str(answers["a/pipe.png"])
    assert "3,221,225,472 bytes, more than 1,073,741,824" in str(answers["a/vast.png"])


def test_a_folder_that_may_not_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passing over it would leave its images out without a word. Root may list everything, so the refusal is made."""
    for name in ("a", "b"):
        write(tmp_path / name / "deep", 4)
    listed = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("b/deep"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"dataset\.root: .*: cannot be read: .*b/deep: Permission denied"):
        image_folder.index(image_folder.Config(root=str(tmp_path)), 0)


@pytest.mark.parametrize("root", ["x" * 5_000, "~nobody-of-this-name/images", "nul\0", "new\nline"])
def test_a_root_that_is_no_path(root: str) -> None:
    for kind in (image_folder, unlabelled_folder):
        with pytest.raises(InputError) as caught:
            kind.index(kind.Config(root=root), 0)  # type: ignore[attr-defined]
        assert "no such folder" in str(caught.value) or "not a path" in str(caught.value)
        assert str(caught.value).isprintable()


# ------------------------------------------------------------------------------------------------- odd sets


def test_a_thousand_classes_of_one_image(tmp_path: Path) -> None:
    """They can be split by the user alone: nothing can be taken from a class of one."""
    for number in range(1000):
        write(tmp_path / "train" / f"{number:03d}", 1, first=number)
    config = image_folder.Config(root=str(tmp_path))
    with pytest.raises(
        InputError, match=r"too few images to be in each of train, val, test: 000 \(1\), .* and 992 more"
    ):
        image_folder.index(config, 0)
    for split in ("val", "test"):
        write(tmp_path / split / "007", 2, first=1000)
    found = image_folder.index(config, 0)
    assert (len(found.class_names), found.split_counts()) == (1000, {"train": 1000, "val": 2, "test": 2})
    assert sorted(found.labels.tolist()) == sorted([*range(1000), 7, 7, 7, 7])


def test_16_bits_are_scaled_row_by_row_as_the_whole_would_be() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (37, 53)).astype(np.uint16)
    image = decode_image(encoded(Image.fromarray(values)))
    expected = np.round(values.astype(np.float64) * (255.0 / 65535.0)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], expected)
