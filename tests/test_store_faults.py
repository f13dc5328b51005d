"""A server that fails for a while, a cache on this machine, damaged files and a full disk: whole or absent, always."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pytest
from test_store import bucket, make, overwrite, s3_port, staged  # noqa: F401

from sweeper import files, shards, storage
from sweeper.errors import InputError, RunFailed
from sweeper.shard_cache import ShardCache
from sweeper.store import Store


class Proxy:
    """Between a client and the server: passes bytes on, or answers 503, hangs up, stalls, or is gone."""

    def __init__(self, port: int) -> None:
        self.upstream, self.mode, self.requests, self.refused = port, "pass", 0, 0
        self.open: set[socket.socket] = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.open.add(client)
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with suppress(OSError), client:
            if self.mode != "pass":
                self.refused += 1
                data = client.recv(65536) if self.mode in ("503", "stall") else b""
                if data and self.mode == "503":
                    client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                while data and self.mode == "stall":
                    time.sleep(0.02)
                return
            with socket.create_connection(("127.0.0.1", self.upstream)) as server:
                self.open.add(server)
                threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
                self.pump(client, server)

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.requests += data.count(b"GET /") + data.count(b"PUT /") + data.count(b"POST /")
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def set(self, mode: str) -> None:
        self.mode = mode
        while self.open:
            with suppress(OSError):
                self.open.pop().shutdown(socket.SHUT_RDWR)

    def fail(self, mode: str, seconds: float) -> None:
        self.set(mode)
        threading.Timer(seconds, self.set, ["pass"]).start()


@pytest.fixture
def proxy(bucket: str, s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:  # noqa: F811
    made = Proxy(s3_port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    monkeypatch.setattr(storage, "REQUEST_TIMEOUT_S", 1.0)
    yield made
    made.set("pass")
    made.listener.close()


OPERATIONS: dict[str, Callable[[Store, str], Any]] = {
    "read": lambda store, prefix: store.storage.read(f"{prefix}/a.bin"),
    "list": lambda store, prefix: [info.base_name for info in store.storage.listing(prefix)],
    "hash": lambda store, prefix: store.storage.files(prefix, deep=True),
    "write": lambda store, prefix: store.write_bytes(prefix, "b", bytes(100_000)),
    "commit": lambda store, prefix: store.commit("k", "x", {}, prefix).files,
    "delete": lambda store, prefix: store.discard(prefix),
}


@pytest.mark.parametrize("mode", ["503", "close", "stall"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_outage_is_survived(proxy: Proxy, bucket: str, mode: str, operation: str) -> None:  # noqa: F811
    """The same result as without it, for everything that the store does."""
    store, do = Store(f"s3://{bucket}/p"), OPERATIONS[operation]
    expected = do(store, staged(store))
    store.remove("k")
    prefix = staged(store)
    proxy.fail(mode, 0.4)
    assert do(store, prefix) == expected
    assert proxy.refused


def test_a_worker_that_starts_during_an_outage_is_as_patient_as_its_driver(
    proxy: Proxy,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "FIRST_PATIENCE_S", 0.0)
    store = Store(f"s3://{bucket}/p")
    record = make(store)
    proxy.fail("503", 0.4)
    assert pickle.loads(pickle.dumps(store)).get("k") == record


@pytest.mark.slow
def test_a_server_that_vanishes_for_twenty_seconds(proxy: Proxy, bucket: str) -> None:  # noqa: F811
    store = Store(f"s3://{bucket}/p")
    prefix = staged(store)
    for mode in ("503", "close", "stall"):
        proxy.fail(mode, 20)
        assert store.storage.read(f"{prefix}/a.bin") == b"abc"


def test_a_server_that_stays_away_fails_the_run_with_uri_and_time(
    proxy: Proxy,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "PATIENCE_S", 2.0)
    store = Store(f"s3://{bucket}/p")
    make(store)
    proxy.set("503")
    began = time.monotonic()
    with pytest.raises(RunFailed, match=rf"s3://{bucket}/p failed \(tried for [12] s\)"):
        store.get("k")
    assert 1 < time.monotonic() - began < 4


def test_a_place_never_reached_is_the_users_mistake_within_seconds(
    proxy: Proxy,
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "FIRST_PATIENCE_S", 0.5)
    for mode in ("503", "close", "stall"):
        proxy.set(mode)
        began = time.monotonic()
        with pytest.raises(InputError, match=f"cannot reach s3://{bucket}/p"):
            Store(f"s3://{bucket}/p").get("k")
        assert time.monotonic() - began < 30  # pyarrow by itself waits 100 s for a server that says nothing


def test_a_mistake_is_not_tried_again(bucket: str, proxy: Proxy) -> None:  # noqa: F811
    store = Store(f"s3://no-such-{bucket}/p")
    assert store.get("k") is None
    began = time.monotonic()
    with pytest.raises(RunFailed, match="NO_SUCH_BUCKET"):
        store.write_bytes("data/x", "a", b"1")
    with pytest.raises(InputError, match="cannot write"):
        store.staging()
    assert time.monotonic() - began < storage.FIRST_PATIENCE_S


def test_any_fsspec_place_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    store = Store("fsspec+memory://sweeper/store")
    record = make(store)
    assert Store(store.uri).get("k") == record
    assert store.read_bytes(record, "a.bin") == b"abc"
    store.remove("k")
    assert store.get("k") is None


# ------------------------------------------------------------------------------------------------- the cache


def test_a_file_of_a_distant_store_is_fetched_once(proxy: Proxy, bucket: str, tmp_path: Path) -> None:  # noqa: F811
    store = Store(f"s3://{bucket}/p")
    prefix = store.staging()
    shards.write_rows(store, prefix, pa.table({"x": list(range(1000))}), ["x"])
    record = store.commit("k", "x", {}, prefix)
    tables, before = [store.read_table(record)], proxy.requests
    tables += [Store(store.uri).read_table(record) for _ in range(3)]
    assert all(table.equals(tables[0]) for table in tables)
    assert proxy.requests == before
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.name != ".lock"] == [record.files[0].sha256]


@pytest.mark.parametrize("damage", [b"", b"xyz", b"abcd"])
def test_a_cached_file_that_went_bad_is_fetched_anew(bucket: str, tmp_path: Path, damage: bytes) -> None:  # noqa: F811
    store = Store(f"s3://{bucket}/p")
    record = make(store)
    for _ in range(2):
        assert store.read_bytes(record, "a.bin") == b"abc"
        (tmp_path / "cache" / record.files[0].sha256).write_bytes(damage)
    assert store.read_bytes(record, "a.bin") == b"abc"


def test_a_store_in_a_folder_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    store = Store(str(tmp_path / "store"))
    assert store.read_bytes(make(store), "a.bin") == b"abc"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("SWEEPER_CACHE_GB", "0"), ("SWEEPER_CACHE_GB", "1e-9"), ("SWEEPER_CACHE", "/proc/nowhere")]
)
def test_without_room_files_are_read_through(
    bucket: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
) -> None:
    monkeypatch.setenv(name, value)
    store = Store(f"s3://{bucket}/p")
    record = make(store)
    assert store.read_bytes(record, "a.bin") == b"abc"
    assert not (tmp_path / "cache").exists()
    monkeypatch.setenv("SWEEPER_CACHE_GB", "much")
    with pytest.raises(InputError, match="SWEEPER_CACHE_GB: 'much'"):
        store.read_bytes(record, "a.bin")


def writes(data: bytes) -> Callable[[IO[bytes]], bool]:
    return lambda file: bool(file.write(data))


def digest(number: int) -> str:
    return f"{number:064x}"


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 100)
    for number in range(3):
        assert cache.path(digest(number), 30, writes(bytes(30))) is not None
        os.utime(tmp_path / digest(number), ns=(number, number))
    cache.path(digest(0), 30, writes(b"never"))
    assert cache.path(digest(3), 70, writes(bytes(70))) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", digest(0), digest(3)]
    assert cache.path(digest(4), 101, writes(b"never")) is None
    (tmp_path / "of the user").write_bytes(bytes(1000))
    assert cache.path(digest(5), 100, writes(bytes(100))) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", digest(5), "of the user"]


def test_a_part_that_is_being_fetched_counts_and_a_dead_ones_goes(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 100)
    (tmp_path / f"{digest(7)}.part").write_bytes(bytes(90))  # a killed process's

    def fetch(file: IO[bytes]) -> bool:
        assert cache.path(digest(2), 60, writes(bytes(60))) is None
        return writes(bytes(50))(file)

    assert cache.path(digest(1), 50, fetch) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", digest(1)]


def _held_bytes(folder: Path) -> int:
    """While nobody can reserve room or rename; what goes away meanwhile does not count."""
    total = 0
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in folder.iterdir():
            with suppress(FileNotFoundError):
                total += path.stat().st_size
    return total


def _reads(folder: Path, seed: int) -> None:
    cache = ShardCache(folder, 3_500)
    for turn in range(60):
        path = cache.path(digest(seed * turn % 5), 1000, writes(bytes(1000)))
        with suppress(FileNotFoundError):
            assert path is None or len(path.read_bytes()) == 1000
        assert _held_bytes(folder) <= 3_500


def test_several_processes_share_it_and_its_bound(tmp_path: Path) -> None:
    readers = [multiprocessing.get_context("fork").Process(target=_reads, args=(tmp_path, seed)) for seed in (1, 2, 3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
        assert reader.exitcode == 0


def test_two_processes_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    fetched, barrier = list[int](), threading.Barrier(4)

    def slowly(file: IO[bytes]) -> bool:
        fetched.append(1)
        time.sleep(0.1)
        return writes(b"abc")(file)

    def one() -> None:
        barrier.wait()
        assert ShardCache(tmp_path, 100).path(digest(1), 3, slowly) == tmp_path / digest(1)

    threads = [threading.Thread(target=one) for _ in range(barrier.parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert fetched == [1]
    assert (tmp_path / digest(1)).read_bytes() == b"abc"


# ------------------------------------------------------------------------------------------------- damage


def two_teachers(store: Store) -> str:
    """Two artifacts that share a file."""
    prefix = store.staging()
    shards.write_rows(store, prefix, pa.table({"a": [1, 2, 3], "b": [4, 5, 6]}), ["x"])
    for key in "ab":
        store.commit(key, "targets", {}, prefix, columns={"x": key})
    (name,) = store.storage.files(prefix, deep=False)
    return f"{prefix}/{name}"


@pytest.mark.parametrize("place", ["folder", "s3"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped"])
def test_a_damaged_shard_is_never_served_and_is_made_anew(
    place: str, damage: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = Store(str(tmp_path) if place == "folder" else f"s3://{request.getfixturevalue('bucket')}/p")
    name = two_teachers(store)
    record, data = store.get("a"), store.storage.read(name)
    assert record is not None
    assert data is not None
    flipped = data[:100] + bytes([data[100] ^ 1]) + data[101:]
    if damage == "missing":
        store.storage.delete(name)
    else:
        overwrite(store, name, data[:-1] if damage == "truncated" else flipped)
    assert (store.get("a") is None) == (damage != "flipped")  # what a plan sees: to be built again
    for read in (store.read_table, lambda record: store.read_bytes(record, record.files[0].name)):
        with pytest.raises(RunFailed, match=rf"{name} is gone or was changed .*run again to rebuild targets a"):
            read(record)
    assert store.get("a") is store.get("b") is None
    two_teachers(store)
    again = store.get("b")
    assert again is not None
    assert store.read_table(again).to_pydict() == {"x": [4, 5, 6]}


# ------------------------------------------------------------------------------------------------- a full disk


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_disk_that_fills_while_files_are_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    prefix = staged(store)

    def half(path: Path, data: bytes) -> None:
        path.write_bytes(data[: len(data) // 2])
        full()

    monkeypatch.setattr(files, "write_synced", half)
    for call in (lambda: store.write_bytes(prefix, "b", b"1234"), lambda: store.write_bytes(prefix, "a.bin", b"1234")):
        with pytest.raises(RunFailed, match=rf"no space left at {tmp_path} .*what was finished is kept"):
            call()
    monkeypatch.undo()
    assert store.storage.files(prefix, deep=False) == {"a.bin": (3, None)}
    assert [path.name for path in Path(store.path(prefix)).iterdir()] == ["a.bin"]
    assert store.read_bytes(store.commit("k", "x", {}, prefix), "a.bin") == b"abc"


@pytest.mark.parametrize("at", ["write_bytes", "_flush"])
def test_a_disk_that_fills_at_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    store = Store(str(tmp_path))
    prefix = staged(store)
    monkeypatch.setattr(Path if at == "write_bytes" else storage, at, full)
    with pytest.raises(RunFailed, match="no space left"):
        store.commit("k", "x", {}, prefix)
    monkeypatch.undo()
    assert store.get("k") is None
    assert list((tmp_path / "records").iterdir()) == []
    assert store.commit("k", "x", {}, prefix) == store.get("k")


def test_a_full_disk_is_no_mistake_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even at the very first touch."""
    monkeypatch.setattr(files, "write_synced", full)
    with pytest.raises(RunFailed, match="no space left"):
        Store(str(tmp_path)).write_bytes("data/x", "a", b"1")


@pytest.mark.slow
def test_a_small_disk(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        store = Store(str(tmp_path / "store"))
        record = make(store, a=bytes(50_000))
        prefix = store.staging()

        def fill() -> None:
            for number in range(100):
                store.write_bytes(prefix, str(number), bytes(50_000))

        with pytest.raises(RunFailed, match="no space left"):
            fill()
        kept = store.storage.files(prefix, deep=False)
        assert {size for size, _ in kept.values()} == {50_000}
        assert store.verify(deep=True) == []
        assert store.read_bytes(record, "a") == bytes(50_000)
        assert store.discard(prefix)
        make(store, "other", a=bytes(100_000))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
