"""Artifacts are whole or absent, whatever happens to their bytes; in a folder and on an S3 server (moto)."""

from __future__ import annotations

import math
import os
import pickle
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from sweeper import storage
from sweeper.errors import InputError, RunFailed
from sweeper.files import part_path
from sweeper.ledger import Charge
from sweeper.record import Finding, Record, decode
from sweeper.store import Store

CHARGE = Charge(stage="targets", key="k", seconds=1.25, device="cpu", units=8)
DAY_S = 24 * 3600


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in {
        "SWEEPER_CACHE": str(tmp_path / "cache"),
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3_port}",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{uuid.uuid4()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return Store(str(tmp_path / "a store"))
    return Store(f"s3://{request.getfixturevalue('bucket')}/some/prefix")


def staged(store: Store, **files: bytes) -> str:
    prefix = store.staging()
    for name, data in (files or {"a.bin": b"abc"}).items():
        store.write_bytes(prefix, name.replace("__", "/"), data)
    return prefix


def make(store: Store, key: str = "k", **files: bytes) -> Record:
    return store.commit(key, "targets", {"seed": 0}, staged(store, **files))


def overwrite(store: Store, path: str, data: bytes) -> None:
    with store.filesystem.open_output_stream(store.path(path)) as stream:
        stream.write(data)


def contents(store: Store, path: str) -> bytes:
    with store.filesystem.open_input_stream(store.path(path)) as stream:
        return bytes(stream.read())


def test_round_trip(store: Store) -> None:
    prefix = staged(store, a=b"abc", deep__b=b"", deep__c=b"x" * 3_000_000)
    spec = {"teacher": {"kind": "timm", "lr": 1e-5}, "views": (1, 2)}
    record = store.commit(
        "k", "targets", spec, prefix, {"x": "a_x"}, 8, {"cosine": 0.9999}, CHARGE, dependencies=["t", "i"]
    )
    assert record == store.get("k") == next(store.records())
    assert (record.kind, record.rows, record.columns) == ("targets", 8, {"x": "a_x"})
    assert record.spec == {"teacher": {"kind": "timm", "lr": 1e-5}, "views": [1, 2]}
    assert (record.meta, record.charge, record.dependencies) == ({"cosine": 0.9999}, CHARGE, ("t", "i"))
    assert [(entry.name, entry.size) for entry in record.files] == [("a", 3), ("deep/b", 0), ("deep/c", 3_000_000)]
    assert record.versions["pyarrow"] == pa.__version__
    assert [store.read_bytes(record, entry.name)[:3] for entry in record.files] == [b"abc", b"", b"xxx"]
    assert store.verify(deep=True) == []


def test_nothing_is_there_before_commit_and_nothing_is_written_by_looking(store: Store) -> None:
    assert store.get("k") is None
    assert (list(store.records()), store.find("targets"), store.verify(deep=True), store.gc()) == ([], [], [], [])
    if store.uri.startswith("/"):
        assert not Path(store.uri).exists()
    staged(store)
    assert store.get("k") is None


def test_pickles_as_its_uri_even_after_use(store: Store) -> None:
    record = make(store)
    data = pickle.dumps(store)
    assert len(data) < 300
    assert pickle.loads(data).get("k") == record


def test_a_store_can_be_moved(tmp_path: Path) -> None:
    record = make(Store(str(tmp_path / "one")))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    moved = Store(f"file://{tmp_path}/two/")
    assert moved.get("k") == record
    assert moved.read_bytes(record, "a.bin") == b"abc"


def test_relative_folders_mean_the_same_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store("here")
    monkeypatch.chdir("/")
    assert store.uri == str(tmp_path / "here")
    make(store)
    assert (tmp_path / "here" / "records" / "k.json").exists()


def test_endpoint_in_the_uri(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    record = make(Store(f"s3://{bucket}"))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert Store(f"s3://{bucket}?scheme=http&endpoint_override=127.0.0.1:{s3_port}").get("k") == record


def test_a_file_that_is_just_being_written_belongs_to_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    prefix = staged(store)
    part = part_path(Path(store.path(prefix)), "b.bin")
    part.write_bytes(b"hal")
    record = store.commit("k", "x", {}, prefix)
    part.unlink()
    assert [entry.name for entry in record.files] == ["a.bin"]
    assert store.get("k") == record


def test_commit_takes_the_files_that_it_is_told(store: Store) -> None:
    prefix = staged(store, a=b"1", b=b"2", deep__c=b"3")
    with pytest.raises(RunFailed, match="/d was deleted before"):
        store.commit("k", "x", {}, prefix, files=["a", "d"])
    record = store.commit("k", "x", {}, prefix, files=["deep/c", "a"])
    assert [entry.name for entry in record.files] == ["a", "deep/c"]
    assert [item.path for item in store.gc(grace_s=-1)] == [f"{prefix}/b"]
    assert store.verify(deep=True) == []


def test_find(store: Store) -> None:
    for key, kind, spec in [("b", "x", {"n": 1, "m": 2}), ("a", "x", {"n": 1}), ("c", "y", {"n": 1})]:
        store.commit(key, kind, spec, staged(store))
    assert [record.key for record in store.find("x")] == ["a", "b"]
    assert [record.key for record in store.find("x", n=1, m=2)] == ["b"]
    assert store.find("x", n=1, z=None) == []


def test_the_first_commit_wins(store: Store) -> None:
    other: Store = pickle.loads(pickle.dumps(store))
    mine, theirs = staged(store, a=b"1"), staged(other, a=b"22")
    first = store.commit("k", "targets", {}, mine)
    assert other.commit("k", "targets", {}, theirs) == first
    assert other.discard(theirs)
    assert not other.discard(mine)
    assert store.get("k") == first
    assert store.read_bytes(first, "a") == b"1"


def test_of_commits_at_the_same_moment_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both writers have seen that there is no record and are about to put theirs in place."""
    stores = [Store(str(tmp_path)) for _ in range(8)]
    prefixes = [staged(store, a=bytes([number])) for number, store in enumerate(stores)]
    barrier, link = threading.Barrier(len(stores)), os.link

    def link_together(source: Any, target: Any) -> None:
        barrier.wait(timeout=30)
        link(source, target)

    monkeypatch.setattr(os, "link", link_together)
    results: list[Record] = []

    def commit(store: Store, prefix: str) -> None:
        results.append(store.commit("k", "targets", {}, prefix))

    threads = [threading.Thread(target=commit, args=pair) for pair in zip(stores, prefixes, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(stores)
    assert all(record == results[0] == stores[0].get("k") for record in results)
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["k.json"]


def test_who_is_late_by_the_time_of_hashing_loses(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing takes minutes for large artifacts: whoever commits meanwhile was first."""
    other, prefix = pickle.loads(pickle.dumps(store)), staged(store, a=b"1")
    meanwhile: list[Record] = []
    files = store.storage.files

    def slow_files(name: str, deep: bool) -> Any:
        if deep and not meanwhile:
            meanwhile.append(make(other, a=b"22"))
        return files(name, deep)

    monkeypatch.setattr(store.storage, "files", slow_files)
    assert [store.commit("k", "targets", {}, prefix)] == meanwhile == [other.get("k")]


def test_folders_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    record = make(store)
    assert make(store) == record == store.get("k")
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["k.json"]


def test_a_writer_that_dies_leaves_nothing_that_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    store = Store(str(tmp_path))
    monkeypatch.setattr(os, "link", die)
    with pytest.raises(KeyboardInterrupt):
        make(store)
    monkeypatch.undo()
    assert store.get("k") is None
    assert store.verify() == []
    assert len(store.gc(grace_s=0)) == 2
    assert list((tmp_path / "records").iterdir()) == list((tmp_path / "data").iterdir()) == []


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "garbage": lambda data: os.urandom(len(data)),
    "zeros": lambda data: bytes(len(data)),
    "another json": lambda data: b"[]",
    "nested": lambda data: b"[" * 100_000,
    "a space": lambda data: data + b" ",
    "a figure": lambda data: data.replace(b'"size":3', b'"size":4'),
    "NaN": lambda data: data.replace(b'"rows":null', b'"rows":NaN'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_absent_is_listed_and_is_replaced(store: Store, damage: str) -> None:
    before = make(store)
    overwrite(store, "records/k.json", DAMAGES[damage](contents(store, "records/k.json")))
    assert store.get("k") is None
    assert list(store.records()) == store.find("targets") == []
    assert [(finding.key, finding.path) for finding in store.verify()] == [("k", "records/k.json")]
    after = make(store)
    assert after.prefix != before.prefix
    assert store.get("k") == after
    assert store.verify(deep=True) == []


def test_a_record_under_another_name_is_not_its_artifact(store: Store) -> None:
    make(store)
    overwrite(store, "records/other.json", contents(store, "records/k.json"))
    assert store.get("other") is None
    assert store.verify() == [Finding("other", "records/other.json", "is the record of k")]


def test_missing_and_cut_files_make_it_absent_and_commit_makes_it_anew(store: Store) -> None:
    record = make(store, a=b"123", b=b"456")
    overwrite(store, f"{record.prefix}/a", b"12")
    store.filesystem.delete_file(store.path(f"{record.prefix}/b"))
    assert store.get("k") is None
    assert store.find("targets") == []
    assert [str(finding).removeprefix(record.prefix) for finding in store.verify()] == [
        "/a has 2 bytes, should have 3",
        "/b is missing",
    ]
    with pytest.raises(RunFailed, match=record.prefix):
        store.read_bytes(record, "b")
    assert make(store, a=b"123", b=b"456") == store.get("k")
    assert store.verify(deep=True) == []


def test_changed_contents_are_found_by_hash(store: Store) -> None:
    record = make(store)
    overwrite(store, f"{record.prefix}/a.bin", b"abd")
    assert store.verify() == []
    assert [finding.path for finding in store.verify(deep=True)] == [f"{record.prefix}/a.bin"]
    with pytest.raises(RunFailed, match="was changed"):
        store.read_bytes(record, "a.bin")


@pytest.mark.parametrize("seed", range(40))
def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    store = Store(str(tmp_path))
    for key in ("one", "two"):
        files = {name: draw.randbytes(draw.randint(1, 3000)) for name in ("a", "deep__b")}
        store.commit(key, "targets", {"lr": 1e-05, "name": "é"}, staged(store, **files), meta={"loss": 2.5e-07})
    hurt = draw.choice(sorted(path for path in tmp_path.rglob("*") if path.is_file()))
    data = bytearray(hurt.read_bytes())
    if draw.random() < 0.5:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    else:
        del data[draw.randrange(len(data)) :]
    hurt.write_bytes(data)
    assert [finding.path for finding in store.verify(deep=True)] == [hurt.relative_to(tmp_path).as_posix()]


def test_every_bit_of_a_record_counts(tmp_path: Path) -> None:
    record = make(Store(str(tmp_path)))
    whole = (tmp_path / "records" / "k.json").read_bytes()
    assert decode(whole, "k") == record
    for bit in range(len(whole) * 8):
        data = bytearray(whole)
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="checksum"):
            decode(bytes(data), "k")


def test_read_table_takes_files_in_order_and_renames(store: Store) -> None:
    prefix = store.staging()
    for number in (2, 0, 1):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"id": [number * 2, number * 2 + 1], "a_x": [0.5, 1.5], "b_x": [7, 8]}), sink)
        store.write_bytes(prefix, f"part-{number}.parquet", sink.getvalue().to_pybytes())
    store.write_bytes(prefix, "README", b"not a table")
    a = store.commit("a", "targets", {}, prefix, columns={"x": "a_x", "id": "id"}, rows=6)
    b = store.commit("b", "targets", {}, prefix, columns={"x": "b_x", "id": "id"}, rows=6)
    plain = store.commit("plain", "targets", {}, prefix)
    assert store.read_table(a).to_pydict() == {"x": [0.5, 1.5] * 3, "id": list(range(6))}
    assert store.read_table(b, ["id", "x"]).to_pydict() == {"id": list(range(6)), "x": [7, 8] * 3}
    assert store.read_table(a, ["b_x"]).to_pydict() == {"b_x": [7, 8] * 3}
    assert store.read_table(plain).column_names == ["id", "a_x", "b_x"]
    with pytest.raises(KeyError, match="nothing"):
        store.read_table(a, ["x", "nothing"])
    with pytest.raises(KeyError, match="no parquet file"):
        store.read_table(make(store))


def test_gc_keeps_what_is_referenced_young_or_not_ours(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = staged(store, a=b"12345")
    for key in ("one", "two"):
        store.commit(key, "targets", {}, shared)
    orphan = staged(store, a=b"123", b=b"4567")
    overwrite(store, "data/of-the-user.csv", b"1,2")
    store.write_bytes("data/mine", "x.csv", b"1,2")
    store.remove("one")
    store.remove("never-was")
    assert store.get("one") is None

    assert store.gc() == []
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + (DAY_S + 60) * 1_000_000_000)
    assert [(item.path, item.bytes) for item in store.gc(dry_run=True)] == [(orphan, 7)]
    assert [(item.path, item.bytes) for item in store.gc()] == [(orphan, 7)]
    assert store.gc() == []
    assert store.get("two") is not None
    store.remove("two")
    assert [item.path for item in store.gc(grace_s=2 * DAY_S)] == []
    assert [item.path for item in store.gc()] == [shared]
    assert contents(store, "data/of-the-user.csv") == contents(store, "data/mine/x.csv") == b"1,2"


def test_gc_keeps_an_old_prefix_that_is_still_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, now = Store(str(tmp_path)), time.time_ns()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now - 2 * DAY_S * 1_000_000_000)
        prefix = store.staging()
    assert [item.path for item in store.gc(dry_run=True)] == [prefix]
    store.write_bytes(prefix, "a", b"1")
    assert store.gc() == []


def test_discard_deletes_only_what_staging_gave(store: Store) -> None:
    prefix = staged(store)
    assert store.discard(prefix)
    assert store.discard(prefix)
    for wrong in ("data", "records", "", f"{prefix}/..", f"data/{uuid.uuid4()}"):
        with pytest.raises(ValueError, match="staging"):
            store.discard(wrong)


def test_wrong_arguments_are_refused_and_leave_nothing(store: Store) -> None:
    prefix = staged(store)
    for key in ("", "../k", "a/b", ".hidden"):
        with pytest.raises(ValueError, match="key"):
            store.commit(key, "x", {}, prefix)
    with pytest.raises(ValueError, match="nothing was written"):
        store.commit("k", "x", {}, store.staging())
    with pytest.raises(TypeError, match=r"value\.loss"):
        store.commit("k", "x", {}, prefix, meta={"loss": math.nan})
    for name in ("", "/etc/x", "../x"):
        with pytest.raises(ValueError, match="file name"):
            store.write_bytes(prefix, name, b"")
    assert list(store.records()) == []


def test_a_place_that_cannot_be_written_to_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for uri in (str(tmp_path / "file" / "store"), "/proc/nowhere/store"):
        with pytest.raises(InputError, match=uri):
            Store(uri).staging()
    with pytest.raises(InputError, match="nonsense://x"):
        Store("nonsense://x").get("k")


def test_a_bucket_that_is_not_there_or_a_dead_server_is_an_input_error(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="s3://no-such-bucket/p"):
        Store("s3://no-such-bucket/p").staging()
    store = Store(f"s3://{bucket}/p")
    make(store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=f"s3://{bucket}/p"):
        Store(f"s3://{bucket}/p").get("k")


def test_a_server_that_is_lost_on_the_way_fails_the_run_and_deletes_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error while reading a record must not look like its absence, or `gc` would delete its files."""
    record = make(store)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("connection reset")

    real = store.filesystem

    class Flaky:
        get_file_info, delete_dir = real.get_file_info, real.delete_dir
        open_input_stream = fail

    monkeypatch.setattr(storage, "PATIENCE_S", 0.0)
    monkeypatch.setattr(store.storage, "_opened", (Flaky, store.path("")[:-1]))
    for call in (
        lambda: store.get("k"),
        lambda: store.gc(grace_s=0),
        lambda: store.commit("k", "x", {}, record.prefix),
    ):
        with pytest.raises(RunFailed, match="connection reset"):
            call()
    monkeypatch.undo()
    assert pickle.loads(pickle.dumps(Store(store.uri))).uri == store.uri
