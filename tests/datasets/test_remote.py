"""Datasets in a bucket: the same samples as on a disk, read by their ranges, and what a server can do to them."""

from __future__ import annotations

import io
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_official_splits import cub200, mit67
from test_store import bucket, s3_port  # noqa: F401
from test_store_faults import Proxy, proxy  # noqa: F401
from test_webdataset import shard

from sweeper import ingest, registry, storage
from sweeper.datasets import DatasetIndex, _places, image_folder
from sweeper.errors import InputError, RunFailed
from sweeper.plan import artifact
from sweeper.store import Store


def upload(folder: Path, to: str, prefix: str) -> str:
    client = boto3.client("s3")
    for file in folder.rglob("*"):
        if file.is_file():
            client.upload_file(str(file), to, f"{prefix}/{file.relative_to(folder).as_posix()}")
    return f"s3://{to}/{prefix}"


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (5, 4), (number, 7, 9))


def folder_of_images(root: Path) -> None:
    for split, count in (("train", 6), ("test", 2)):
        for label, name in enumerate(("cat", "a dog")):
            place = root / split / name / "deep"
            place.mkdir(parents=True)
            for number in range(count):
                picture(10 * number + label).save(place / f"{number}.png")
    (root / "train" / ".hidden.png").write_bytes(b"x")
    (root / "notes.txt").write_text("x")


def folder_of_parquet(root: Path) -> None:
    for split, count in (("train", 12), ("test", 4)):
        rows = []
        for number in range(count):
            buffer = io.BytesIO()
            picture(number).save(buffer, "PNG")
            rows.append({"bytes": buffer.getvalue(), "path": f"{number}.png"})
        (root / "data").mkdir(parents=True, exist_ok=True)
        table = pa.table({"image": rows, "label": ["cat", "dog"] * (count // 2)})
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)


def folder_of_shards(root: Path) -> None:
    shard(root / "train-000.tar", ["cat", "dog"] * 6)
    shard(root / "train-001.tar", ["cat", "dog"] * 6, first=12)
    shard(root / "test-000.tar", ["cat", "dog"] * 2, first=24)


KINDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "image_folder": (folder_of_images, "root", {}),
    "unlabelled_folder": (folder_of_images, "root", {}),
    "parquet": (folder_of_parquet, "path", {}),
    "webdataset": (folder_of_shards, "path", {}),
    "huggingface": (folder_of_parquet, "name", {"streaming": True}),
}
main_kinds = pytest.mark.parametrize("kind", ["image_folder", "parquet", "webdataset"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, folder: Path) -> None:
    KINDS[kind][0](folder)


def config_of(kind: str, place: Path | str, **more: Any) -> Any:
    key, fixed = KINDS[kind][1:]
    return registry.config_class("datasets", kind).model_validate({key: str(place), **fixed, **more})


def indexed(config: Any) -> DatasetIndex:
    found: DatasetIndex = registry.load("datasets", config.kind).index(config, 0)
    return found


def decoded(config: Any, sources: list[str]) -> list[Any]:
    images: list[Any] = registry.load("datasets", config.kind).decode(config, sources)
    return images


class Counting(Proxy):
    """Counts the bytes that pass, both ways."""

    passed = 0

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.passed += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


@pytest.fixture(autouse=True)
def _no_open_connections() -> None:
    """Places are kept by a process for its tasks, and each test has another server."""
    _places.place_of.cache_clear()


@every_kind
def test_a_bucket_holds_the_same_samples_as_a_folder(
    kind: str,
    tmp_path: Path,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "huggingface":
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")
    made(kind, tmp_path / "set")
    near, far = config_of(kind, tmp_path / "set"), config_of(kind, upload(tmp_path / "set", bucket, "a/set"))
    here, there = indexed(near), indexed(far)
    assert here.class_names == there.class_names
    assert here.sample_ids == there.sample_ids
    assert here.splits == there.splits
    np.testing.assert_array_equal(here.labels, there.labels)
    images, others = decoded(near, here.sources), decoded(far, there.sources)
    for image, other in zip(images, others, strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
    assert all("test" not in source.split("@")[0] or bucket in source for source in there.sources)


@main_kinds
def test_in_a_bucket_identity_follows_etags_and_not_the_place(
    kind: str,
    tmp_path: Path,
    bucket: str,  # noqa: F811
) -> None:
    made(kind, tmp_path / "set")
    first = indexed(config_of(kind, upload(tmp_path / "set", bucket, "one"))).content
    assert indexed(config_of(kind, upload(tmp_path / "set", bucket, "deeper/two/"[:-1]))).content == first
    changed = sorted(file for file in (tmp_path / "set").rglob("*") if file.suffix in (".png", ".parquet", ".tar"))[-1]
    if changed.suffix == ".png":
        picture(200).save(changed)
    elif changed.suffix == ".tar":
        shard(changed, ["cat", "dog"] * 6, first=100)
    else:
        table = pq.read_table(changed)
        pq.write_table(table, changed, row_group_size=3)
    assert indexed(config_of(kind, upload(tmp_path / "set", bucket, "one"))).content != first


def test_an_index_of_a_bucket_reads_no_image(
    tmp_path: Path,
    bucket: str,  # noqa: F811
    s3_port: int,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image folder is listed, and each object asked for its ETag; of parquet files only the labels are read."""
    counting = Counting(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{counting.port}")
    noise = np.random.default_rng(0).integers(0, 256, (20, 256, 256, 3), dtype=np.uint8)
    images = []
    for number, pixels in enumerate(noise):
        place = tmp_path / "images" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
        images.append(place.read_bytes())
    (tmp_path / "rows").mkdir()
    table = pa.table({"image": images, "label": [0, 1] * 10})
    pq.write_table(table, tmp_path / "rows" / "train.parquet", row_group_size=10)
    folder = config_of("image_folder", upload(tmp_path / "images", bucket, "images"))
    rows = config_of("parquet", upload(tmp_path / "rows", bucket, "rows"))
    assert counting.passed > 2 * sum(map(len, images))
    counting.passed = 0
    assert len(indexed(folder)) == len(indexed(rows)) == 20
    assert counting.passed < sum(map(len, images)) / 8
    counting.listener.close()


@main_kinds
def test_an_outage_of_the_bucket_is_survived(
    kind: str,
    tmp_path: Path,
    proxy: Proxy,  # noqa: F811
    bucket: str,  # noqa: F811
) -> None:
    made(kind, tmp_path / "set")
    config = config_of(kind, upload(tmp_path / "set", bucket, "set"))
    expected = indexed(config)
    proxy.fail("503", 0.3)
    assert indexed(config).content == expected.content
    proxy.fail("close", 0.3)
    assert all(isinstance(image, Image.Image) for image in decoded(config, expected.sources))
    assert proxy.refused


def test_a_bucket_that_stays_away_fails_the_run_and_no_image(
    tmp_path: Path,
    proxy: Proxy,  # noqa: F811
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Taken for unreadable images, they would be left out of the data."""
    folder_of_images(tmp_path / "set")
    config = config_of("image_folder", upload(tmp_path / "set", bucket, "set"))
    sources = indexed(config).sources
    monkeypatch.setattr(storage, "PATIENCE_S", 0.3)
    monkeypatch.setattr(storage, "FIRST_PATIENCE_S", 0.3)
    proxy.set("close")
    with pytest.raises(RunFailed, match=r"dataset: s3://.* cannot be read: .*; check the address"):
        decoded(config, sources)
    with pytest.raises(InputError, match=r"dataset\.root: s3://.* cannot be read: "):
        indexed(config)


def test_an_image_that_is_gone_is_unreadable(tmp_path: Path, bucket: str) -> None:  # noqa: F811
    folder_of_images(tmp_path / "set")
    config = config_of("image_folder", upload(tmp_path / "set", bucket, "set"))
    found = indexed(config)
    boto3.client("s3").delete_object(Bucket=bucket, Key=found.sources[2].partition("/")[2])
    answers = decoded(config, found.sources)
    assert [row for row, answer in enumerate(answers) if isinstance(answer, Exception)] == [2]
    assert isinstance(answers[2], FileNotFoundError)


@pytest.mark.parametrize("kind", ["image_folder", "parquet", "webdataset", "huggingface"])
def test_what_is_not_there(kind: str, bucket: str) -> None:  # noqa: F811
    for uri in (f"s3://{bucket}/none", "s3://no-such-bucket-of-ours/x"):
        with pytest.raises(InputError) as caught:
            indexed(config_of(kind, uri))
        assert uri in str(caught.value)
        assert "no such file or folder" in str(caught.value) or "no file lies below it" in str(caught.value)


def test_patterns_of_a_bucket(tmp_path: Path, bucket: str) -> None:  # noqa: F811
    folder_of_shards(tmp_path / "set")
    uri = upload(tmp_path / "set", bucket, "set")
    assert len(indexed(config_of("webdataset", f"{uri}/train-{{000..001}}.tar"))) == 24
    assert len(indexed(config_of("webdataset", f"{uri}/train-*.tar"))) == 24
    assert len(indexed(config_of("webdataset", f"s3://{bucket}/**/*.tar"))) == 28
    assert len(indexed(config_of("webdataset", f"{uri}/train-000.tar"))) == 12
    with pytest.raises(InputError, match=r"there is no train-002\.tar"):
        indexed(config_of("webdataset", f"{uri}/train-{{000..002}}.tar"))
    with pytest.raises(InputError, match="is a pattern; give a folder of class folders"):
        indexed(config_of("image_folder", f"{uri}/*"))


@pytest.mark.parametrize(("write", "splits"), [(mit67, "mit67"), (cub200, "cub200")])
def test_official_splits_of_a_bucket(write: Any, splits: str, tmp_path: Path, bucket: str) -> None:  # noqa: F811
    near = config_of("image_folder", write(tmp_path / "set"), splits=splits)
    far = config_of("image_folder", upload(tmp_path / "set", bucket, "set"), splits=splits)
    here, there = indexed(near), indexed(far)
    assert (here.class_names, here.sample_ids, here.splits) == (there.class_names, there.sample_ids, there.splits)
    assert all(isinstance(image, Image.Image) for image in decoded(far, there.sources))
    boto3.client("s3").delete_object(Bucket=bucket, Key=there.sources[0].partition("/")[2])
    with pytest.raises(InputError, match=r"1 images of .* are not there"):
        indexed(far)


def test_a_place_without_etags_is_hashed(tmp_path: Path) -> None:
    """fsspec's memory: here the contents of a file elsewhere and on a disk are one."""
    import fsspec

    fsspec.filesystem("memory").put(str(shutil.copytree(_set(tmp_path), tmp_path / "copy")), "/set", recursive=True)
    far = indexed(config_of("image_folder", "fsspec+memory://set"))
    assert far.content == indexed(config_of("image_folder", tmp_path / "set")).content


def _set(tmp_path: Path) -> Path:
    folder_of_images(tmp_path / "set")
    return tmp_path / "set"


def test_the_images_stage_reads_a_bucket(ray_session: None, tmp_path: Path, bucket: str, store: Store) -> None:  # noqa: F811
    """Through Ray Data's tasks, which have the settings and the sources and nothing else."""
    folder_of_shards(tmp_path / "set")
    upload(tmp_path / "set", bucket, "set")
    # Ray's processes are older than this server: all that they need stands in the URI.
    uri = f"s3://test:test@{bucket}/set?scheme=http&endpoint_override={_endpoint()}"
    config = config_of("webdataset", uri, image_size=8)
    index = indexed(config)
    spec = {"content": index.content, "image_size": 8, "class_names": list(index.class_names)}
    record = ingest.build(store, artifact("images", spec, "x", len(index)), config, index)
    rows = {row["sample_id"]: row["image"][0] for row in store.read_table(record).to_pylist()}
    assert rows == {name: number for number, name in _numbers(index)}


def _endpoint() -> str:
    return os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")


def _numbers(index: DatasetIndex) -> list[tuple[int, str]]:
    firsts = {"train-000.tar": 0, "train-001.tar": 12, "test-000.tar": 24}
    split = [name.split("/") for name in index.sample_ids]
    return [(firsts[tar] + int(number), f"{tar}/{number}") for tar, number in split]


def test_secrets_of_a_uri_stay_out_of_sources_and_messages(bucket: str) -> None:  # noqa: F811
    config = image_folder.Config(root=f"s3://AKIAKEY:verysecret@{bucket}/none")
    with pytest.raises(InputError) as caught:
        image_folder.index(config, 0)
    assert "verysecret" not in str(caught.value)
    boto3.client("s3").put_object(Bucket=bucket, Key="p/x/1.png", Body=b"x")
    remote = _places.Remote(f"s3://AKIAKEY:verysecret@{bucket}/p", "x")
    assert remote.source("x/1.png") == f"{bucket}/p/x/1.png"
