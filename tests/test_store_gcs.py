"""The store's own tests on Google's API: Arrow's filesystem for it lists no folders, and misses one in its own way."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from test_store import (  # noqa: F401
    test_commit_takes_the_files_that_it_is_told,
    test_discard_deletes_only_what_staging_gave,
    test_gc_keeps_what_is_referenced_young_or_not_ours,
    test_nothing_is_there_before_commit_and_nothing_is_written_by_looking,
    test_round_trip,
)

from sweeper import storage
from sweeper.errors import InputError
from sweeper.store import Store


def test_a_server_that_is_not_there_is_told_of_soon_and_not_after_googles_own_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(storage, "FIRST_PATIENCE_S", 0.0)
    with pytest.raises(InputError, match=r"cannot reach gs://.*--store"):
        Store("gs://anonymous@bucket/prefix?scheme=http&endpoint_override=127.0.0.1:1").get("k")


@pytest.fixture(scope="module")
def gcs_port() -> Iterator[int]:
    emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    yield server._api._httpd.socket.getsockname()[1]
    server.stop()


@pytest.fixture
def store(gcs_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    name = f"bucket-{uuid.uuid4()}"
    headers = {"Content-Type": "application/json"}
    made = Request(f"http://127.0.0.1:{gcs_port}/storage/v1/b?project=p", json.dumps({"name": name}).encode(), headers)
    urlopen(made).close()
    return Store(f"gs://anonymous@{name}/a/prefix?scheme=http&endpoint_override=127.0.0.1:{gcs_port}")
