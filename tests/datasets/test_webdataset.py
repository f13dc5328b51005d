"""WebDataset shards: samples, labels and names as people pack them, byte ranges, and tars that lie."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweeper.datasets.webdataset import Config, decode, index, known_classes
from sweeper.errors import InputError

Member = tuple[str, bytes]


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256, 9)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(
    path: Path, members: Sequence[Member | tarfile.TarInfo], mode: Any = "w", form: int = tarfile.PAX_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def shard(path: Path, labels: Sequence[Any], first: int = 0) -> Path:
    """Sample `n` is the picture `png(first + n)`, with its label as `.cls`."""
    members: list[Member] = []
    for number, label in enumerate(labels):
        members += [(f"{number:06d}.png", png(first + number)), (f"{number:06d}.cls", str(label).encode())]
    return pack(path, members)


def at(path: Path | str, **more: object) -> Config:
    return Config.model_validate({"path": str(path), **more})


def refusal(path: Path | str, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        index(at(path, **more), 0)
    message = str(caught.value)
    assert message.startswith(f"dataset.path: {path}: ")
    assert message.isprintable()
    return message


def red(image: Image.Image | Exception) -> int:
    assert isinstance(image, Image.Image), image
    assert image.mode == "RGB"
    return int(image.getpixel((0, 0))[0])  # type: ignore[index]


TWENTY = [0, 1] * 10


# ------------------------------------------------------------------------------------------------- samples and labels


def test_a_shard_is_indexed_and_its_images_are_read_by_their_bytes(tmp_path: Path) -> None:
    config = at(shard(tmp_path / "a.tar", TWENTY))
    found = index(config, 0)
    assert found.class_names == ("0", "1")
    assert found.labels.tolist() == TWENTY
    assert found.sample_ids[:2] == ["a.tar/000000", "a.tar/000001"]
    assert found.split_counts() == {"train": 12, "val": 4, "test": 4}
    order = random.Random(0).sample(range(20), 20)
    assert [red(image) for image in decode(config, [found.sources[row] for row in order])] == order
    start, size = map(int, found.sources[3].rpartition("#")[2].split("+"))
    assert (tmp_path / "a.tar").read_bytes()[start : start + size] == png(3)


def test_labels_are_names_where_one_is_no_number(tmp_path: Path) -> None:
    found = index(at(shard(tmp_path / "a.tar", ["dog", "cat", "7", "cat"] * 5)), 0)
    assert found.class_names == ("7", "cat", "dog")
    assert found.labels.tolist() == [2, 1, 0, 1] * 5


def test_a_label_may_lie_in_the_json(tmp_path: Path) -> None:
    members: list[Member] = []
    for number in range(12):
        meta = {"label": number % 2, "of": {"kind": "cat" if number % 3 else "dog"}, "old": True}
        members += [(f"{number}.json", json.dumps(meta).encode()), (f"{number}.png", png(number))]
    path = pack(tmp_path / "a.tar", members)
    assert index(at(path, label="json.label"), 0).labels.tolist() == [0, 1] * 6
    assert index(at(path, label="json.of.kind"), 0).class_names == ("cat", "dog")
    assert "0.json: has no lable (KeyError" in refusal(path, label="json.lable")
    assert "the label is True; it must be a whole number or a name" in refusal(path, label="json.old")
    assert "sample 0 has no .cls; it has json, png; set `dataset.label: json.KEY`" in refusal(path)


@pytest.mark.parametrize("name", ["classes.txt", "classnames.txt"])
def test_names_come_from_a_file_beside_the_shards_or_from_the_settings(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / "a.tar", [0, 2] * 5)
    (tmp_path / name).write_text("ant\nbee\ncow\n\n")
    assert index(at(path), 0).class_names == ("ant", "cow")
    assert index(at(tmp_path), 0).class_names == ("ant", "cow")
    assert index(at(tmp_path / "*.tar"), 0).class_names == ("ant", "cow")
    (tmp_path / name).write_text("ant\nbee\n")
    assert "label 2 in a.tar/000001, but there are 2 class names" in refusal(path)
    assert "no row has the label 1 (y)" in refusal(path, class_names=["x", "y", "z"])
    (tmp_path / name).write_text("ant\nbee\nant\n")
    assert f"{name}: ant: given twice" in refusal(path)


def test_a_sample_is_its_members_up_to_the_first_dot(tmp_path: Path) -> None:
    """The convention of the format: folders count, `seg.png` is another member than `png`, `__key__` is none."""
    members = [
        (f"{folder}/x.y/1.{end}", data)
        for folder, label in (("a", b"0"), ("b", b"1"), ("c", b"0"), ("d", b"1"), ("e", b"0"), ("f", b"1"))
        for end, data in (("seg.png", b"mask"), ("JPG", png(7)), ("cls", label), ("txt", b"words"))
    ]
    found = index(at(pack(tmp_path / "a.tar", [("__meta.json", b"{}"), *members, ("._1.png", b"mac")])), 0)
    assert found.sample_ids[0] == "a.tar/a/x.y/1"
    assert len(found) == 6


# ------------------------------------------------------------------------------------------------- shards and splits


def test_a_range_a_glob_and_a_folder_name_the_same_samples(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / "s" / f"part-{number:03d}.tar", TWENTY, first=20 * number)
    found = [
        index(at(tmp_path / "s" / name), 0)
        for name in ("", "part-{000..002}.tar", "part-*.tar", "part-{000,001,002}.tar")
    ]
    assert len({one.content for one in found}) == 1
    assert found[0].sources == found[1].sources
    assert len(found[0]) == 60
    assert len(index(at(tmp_path / "s" / "part-{000..001}.tar"), 0)) == 40


def test_a_range_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "p-00.tar", TWENTY)
    assert f"there is no {tmp_path}/p-01.tar" in refusal(tmp_path / "p-{00..01}.tar")
    assert "{09..02} is no range" in refusal(tmp_path / "p-{09..02}.tar")
    assert "{0..999999999} is no range" in refusal(tmp_path / "p-{0..999999999}.tar")
    assert "the braces name more than 100,000 files" in refusal(tmp_path / "{0..9999}{0..9999}.tar")
    assert "no file matches" in refusal(tmp_path / "q-*.tar")
    assert "no such file or folder; give a tar file" in refusal(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no *.tar file in the folder" in refusal(tmp_path / "empty")


def test_splits_are_those_of_the_shards_names(tmp_path: Path) -> None:
    shard(tmp_path / "train-000.tar", TWENTY)
    shard(tmp_path / "train-001.tar", TWENTY, first=20)
    shard(tmp_path / "test" / "000.tar", [0, 1] * 3, first=40)
    found = index(at(tmp_path), 0)
    assert found.split_counts() == {"train": 34, "val": 6, "test": 6}
    assert [s for i, s in zip(found.sample_ids, found.splits, strict=True) if i.startswith("test/")] == ["test"] * 6


def test_identity_follows_bytes_and_not_the_place(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", TWENTY)
    shutil.copytree(tmp_path, tmp_path.with_name("moved"))
    contents = [index(at(path), 0).content, index(at(tmp_path.with_name("moved") / "a.tar"), 0).content]
    shard(path, TWENTY, first=1)
    contents.append(index(at(path), 0).content)
    shard(path, [1, 0] * 10)
    contents.append(index(at(path), 0).content)
    assert contents[0] == contents[1]
    assert len(set(contents)) == 3


def test_known_classes() -> None:
    assert known_classes(at("x")) is None
    assert known_classes(at("x", num_classes=3)) == 3
    assert known_classes(at("x", class_names=["a", "b"])) == ("a", "b")


# ------------------------------------------------------------------------------------------------- what is refused


def test_a_sample_that_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    assert "sample 1 has no image (jpg, jpeg, png, webp); it has cls, gif" in refusal(
        pack(path, [("1.gif", b"x"), ("1.cls", b"0")])
    )
    assert "1.jpg: a second image of its sample" in refusal(pack(path, [("1.png", b"x"), ("1.jpg", b"x")]))
    twice = [("1.png", b"x"), ("1.cls", b"0"), ("2.png", b"x"), ("2.cls", b"0"), ("1.json", b"{}")]
    assert "sample 1 begins twice" in refusal(pack(path, twice))
    assert "1.cls: the label is ''" in refusal(pack(path, [("1.png", b"x"), ("1.cls", b" \n")]))
    assert "1.cls: has no text (UnicodeDecodeError" in refusal(pack(path, [("1.png", b"x"), ("1.cls", b"\xff")]))
    assert "bytes, which is no label" in refusal(pack(path, [("1.png", b"x"), ("1.cls", bytes(2**20 + 1))]))
    assert "no row in a.tar" in refusal(pack(path, [("README", b"x")]))
    assert "one class only (0)" in refusal(shard(path, [0] * 5))


def test_another_number_of_classes_than_expected(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", TWENTY)
    assert "2 classes (0, 1), but `dataset.num_classes` says 10" in refusal(path, num_classes=10)
    assert len(index(at(path, num_classes=2), 0)) == 20


@pytest.mark.parametrize("cut", [1, 600, 1024, 1536, 9000])
def test_a_shard_that_was_cut_short_is_refused(tmp_path: Path, cut: int) -> None:
    """At the end, inside a member and between two of them, where Python's own reader takes it for the end."""
    path = pack(
        tmp_path / "a.tar", [(f"{n}.{end}", data) for n in range(40) for end, data in (("png", png(n)), ("cls", b"0"))]
    )
    whole = path.read_bytes().rstrip(b"\0")
    end = (len(whole) + 511) // 512 * 512  # the last member's last block; two blocks of zeros would follow
    path.write_bytes(path.read_bytes()[: end + 1 - cut if cut > 1 else end])
    assert "a.tar cannot be read as an uncompressed tar" in refusal(path)


@pytest.mark.parametrize(
    "data", [b"", b"not a tar" * 100, b"\x1f\x8b" + os.urandom(2000), bytes(257) + b"ustar" + os.urandom(3000)]
)
def test_what_is_no_tar_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    assert "a.tar cannot be read as an uncompressed tar" in refusal(path)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
def test_a_compressed_shard_is_refused(tmp_path: Path, mode: str) -> None:
    path = pack(tmp_path / "a.tar", [("1.png", png(1)), ("1.cls", b"0")], mode)
    assert "cannot be read as an uncompressed tar" in refusal(path)


def test_noise_in_the_headers_is_an_error_and_nothing_else(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", TWENTY)
    whole = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(3):
            data[draw.randrange(512 * 8)] = draw.randrange(256)
        path.write_bytes(data)
        try:
            index(at(path), 0)
        except InputError as error:
            refused += str(error).startswith("dataset.path: ")
    assert refused > 50


# ------------------------------------------------------------------------------------------------- hostile members


def test_names_and_links_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that would be written outside, and links to files that are not ours: names, and passed over."""
    inside = tmp_path / "in"
    inside.mkdir()
    monkeypatch.chdir(inside)
    (tmp_path / "secret.png").write_bytes(png(99))
    members: list[Member | tarfile.TarInfo] = []
    for number in range(8):
        for end, data in (("png", png(number)), ("cls", str(number % 2).encode())):
            members.append((f"../../{number}\x1b[31m\n.{end}", data))
    for name, kind in (("7.png", tarfile.SYMTYPE), ("8.png", tarfile.LNKTYPE), ("9.png", tarfile.FIFOTYPE)):
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, str(tmp_path / "secret.png")
        members.append(link)
    config = at(pack(tmp_path / "x" / "a.tar", [*members, ("/etc/passwd", b"root")]))
    before = sorted(tmp_path.rglob("*"))
    found = index(config, 0)
    assert len(found) == 8
    assert found.sample_ids[0] == "a.tar/../../0\x1b[31m\n"
    assert [red(image) for image in decode(config, found.sources)] == list(range(8))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tar", [("\udcff.png", png(0)), ("\udcff.cls", b"0")], form=tarfile.GNU_FORMAT)
    assert "the name '\\udcff' is not valid UTF-8" in refusal(path)


def test_a_member_with_holes_is_refused(tmp_path: Path) -> None:
    """GNU's sparse form: its bytes do not lie in a row, so that a range of the shard would be other bytes."""
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9999"}
    info.size = 512
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"1\n0\n100\n".ljust(512, b"\0")))
    assert "stored with holes" in refusal(path)


def test_unreadable_images_and_shards_that_changed_come_back_as_errors(tmp_path: Path) -> None:
    members = [(f"{n}.{end}", data) for n in range(6) for end, data in (("png", png(n)), ("cls", b"%d" % (n % 2)))]
    members[4] = ("2.png", b"junk")
    path = pack(tmp_path / "a.tar", members)
    config = at(path)
    sources = index(config, 0).sources
    answers = decode(config, [*sources, f"{tmp_path}/gone.tar#512+9", f"{path}#1024+99999999", f"{path}#0+{2**31}"])
    assert [isinstance(answer, Exception) for answer in answers] == [n == 2 for n in range(6)] + [True] * 3
    assert "it was changed since it was listed" in str(answers[-2])
    assert "more than 1,073,741,824" in str(answers[-1])


def test_a_pipe_is_never_waited_for(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", TWENTY)
    os.mkfifo(tmp_path / "classes.txt")
    assert "not a regular file" in refusal(path)
    os.mkfifo(tmp_path / "b.tar")
    assert isinstance(decode(at(path), [f"{tmp_path}/b.tar#512+9"])[0], OSError)


def test_a_shard_is_passed_over_without_being_held(tmp_path: Path) -> None:
    """40 MB of another member, and as much of an image."""
    members = [(f"{n}.{end}", data) for n in range(6) for end, data in (("png", png(n)), ("cls", b"%d" % (n % 2)))]
    path = pack(
        tmp_path / "a.tar", [*members, ("5.mp4", bytes(40_000_000)), ("6.cls", b"1"), ("6.jpg", bytes(40_000_000))]
    )
    index(at(path), 0)
    tracemalloc.start()
    try:
        assert len(index(at(path), 0)) == 7
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_labels_have_their_type(tmp_path: Path) -> None:
    assert index(at(shard(tmp_path / "a.tar", [5, 900] * 6)), 0).labels.dtype == np.int64
