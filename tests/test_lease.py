"""One driver builds, the others wait: leases are kept by beats, taken over without a clock, and decide nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from test_store import bucket, s3_port  # noqa: F401

from sweeper import lease, storage
from sweeper.fingerprint import canonical_json
from sweeper.lease import Leases, Times, hold, untold
from sweeper.store import Store

QUICK = Times(beat_s=0.03, stale_s=0.4, poll_s=0.01)
NEVER = Times(beat_s=0.03, stale_s=1000, poll_s=0.01)
WHAT = {"k": "targets 'cnn'"}


def commit(store: Store, prefix: str, key: str = "k") -> None:
    store.write_bytes(prefix, "a", b"1")
    store.commit(key, "targets", {}, prefix)


def note_of(store: Store, key: str = "k") -> Any:
    data = store.storage.read(f"pending/{key}.json")
    return None if data is None else json.loads(data)


def left_by(store: Store, prefix: str | None = None, **changes: Any) -> None:
    """The note of a builder on another machine."""
    note = replace(Leases(store, QUICK)._me, machine="another", host="elsewhere", pid=7, prefix=prefix, **changes)
    store.storage.write("pending/k.json", canonical_json(asdict(note)))


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_the_second_waits_and_then_uses_what_the_first_built(store: Store) -> None:
    told, built, begun = list[str](), list[bool](), threading.Event()

    def second() -> None:
        with hold(Store(store.uri), WHAT, lambda line: (told.append(line), begun.set())[0], QUICK) as leases:
            built.append(bool(leases.keys))

    with hold(store, WHAT, untold, QUICK) as leases:
        thread = in_thread(second)
        assert begun.wait(10)
        time.sleep(2 * QUICK.stale_s)  # as long as there are beats, nobody takes over
        assert built == []
        commit(store, leases.prefix(["k"]))
    thread.join(10)
    assert built == [False]
    assert told == [f"waiting for {lease.socket.gethostname()} (process {os.getpid()}) to build targets 'cnn'"]
    assert [info.base_name for info in store.storage.listing("pending") if info.base_name != ".lock"] == []


def test_who_gives_no_sign_of_life_is_taken_over_with_what_it_had_staged(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No clock of either machine is asked: here one of them is a year wrong."""
    prefix, told = store.staging(), list[str]()
    left_by(store, prefix)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    began = time.monotonic()
    with hold(store, WHAT, told.append, QUICK) as leases:
        assert time.monotonic() - began >= QUICK.stale_s
        assert told == ["waiting for elsewhere (process 7) to build targets 'cnn'"]
        assert leases.prefix(["k"]) == prefix
        commit(store, prefix)
    assert note_of(store) is None


def test_a_builder_whose_beats_go_on_is_waited_for(store: Store) -> None:
    left_by(store)
    owner, stop = note_of(store)["owner"], threading.Event()

    def beats() -> None:
        number = 0
        while not stop.wait(0.1):
            store.storage.write(f"pending/{owner}.beat", str(number := number + 1).encode())
        commit(store, store.staging())

    thread = in_thread(beats)
    threading.Timer(2 * QUICK.stale_s, stop.set).start()
    with hold(store, WHAT, untold, QUICK) as leases:
        assert leases.keys == set()
    thread.join(10)


def test_a_dead_process_of_this_machine_is_not_waited_for(store: Store) -> None:
    script = (
        "import os, sys; from sweeper.lease import *; from sweeper.store import Store; s = Store(sys.argv[1])\n"
        "with hold(s, {'k': 'x'}, untold) as leases: print(leases.prefix(['k']), flush=True); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", script, store.uri], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9
    with hold(store, WHAT, untold, NEVER) as leases:
        assert leases.prefix(["k"]) == killed.stdout.strip()


def test_what_was_staged_stays_for_the_next_and_for_gc_while_its_note_is_young(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    long_ago_ns = time.time_ns() - 48 * 3600 * 10**9

    def interrupted() -> str:
        with hold(store, WHAT, untold, QUICK) as leases:
            with monkeypatch.context() as patch:
                patch.setattr(time, "time_ns", lambda: long_ago_ns)
                prefix = leases.prefix(["k"])
            store.write_bytes(prefix, "a", b"1")
            os.utime(store.path(f"{prefix}/a"), ns=(long_ago_ns, long_ago_ns))
            told.append(prefix)
            raise KeyboardInterrupt

    told = list[str]()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (note_of(store)["owner"], note_of(store)["prefix"]) == ("", told[0])
    assert store.gc() == []
    with hold(store, WHAT, untold, NEVER) as leases:
        assert leases.prefix(["k"]) == told[0]
    os.utime(store.path("pending/k.json"), ns=(long_ago_ns, long_ago_ns))
    assert [item.path for item in store.gc()] == [told[0], "pending/k.json"]
    assert note_of(store) is None


def test_targets_of_one_pass_go_on_together_or_anew(store: Store) -> None:
    """Two artifacts were staged in one place: one that was not is no reason to read files that lack it."""
    with hold(store, {"a": "a", "b": "b"}, untold, QUICK) as leases:
        prefix = leases.prefix(["a", "b"])
    with hold(store, {"a": "a", "b": "b", "c": "c"}, untold, QUICK) as leases:
        assert leases.prefix(["b"]) == leases.prefix(["a"]) == prefix
        assert leases.prefix(["a", "b", "c"]) != prefix


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"owner": 1}', bytes(range(128, 228))])
def test_a_note_that_cannot_be_read_is_replaced(store: Store, data: bytes) -> None:
    store.storage.write("pending/k.json", data)
    with hold(store, WHAT, untold, NEVER) as leases:
        assert leases.keys == {"k"}
        commit(store, leases.prefix(["k"]))


def test_without_prefix_or_work_nothing_stays(store: Store) -> None:
    with hold(store, {}, untold, QUICK) as leases:
        assert leases.keys == set()
    assert not Path(store.uri).exists()
    with hold(store, WHAT, untold, QUICK):
        assert note_of(store)["prefix"] is None
    assert note_of(store) is None


@pytest.mark.parametrize("place", ["folder", "s3"])
def test_of_many_at_once_one_builds(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(storage, "SETTLE_S", 0.2)
    uri = str(tmp_path) if place == "folder" else f"s3://{request.getfixturevalue('bucket')}/p"
    left_by(Store(uri), owner="")
    builders, barrier = list[str](), threading.Barrier(6)

    def one() -> None:
        store = Store(uri)
        barrier.wait()
        with hold(store, WHAT, untold, replace(QUICK, stale_s=5)) as leases:
            for key in leases.keys:
                builders.append(key)
                commit(store, leases.prefix([key]))

    threads = [in_thread(one) for _ in range(barrier.parties)]
    for thread in threads:
        thread.join(30)
    assert builders == ["k"]


def test_of_two_that_write_to_an_object_store_the_later_one_wins(
    bucket: str,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both have seen that nobody builds; the second writes right after the first."""
    place, rival = storage.Storage(f"s3://{bucket}/p"), storage.Storage(f"s3://{bucket}/p")
    monkeypatch.setattr(storage.time, "sleep", lambda seconds: rival.write("pending/k.json", b"the rival's"))
    assert not place.swap("pending/k.json", None, b"mine")
    assert not place.swap("pending/k.json", None, b"mine")
    assert place.read("pending/k.json") == b"the rival's"


def test_an_owner_that_was_taken_for_dead_harms_nothing(store: Store) -> None:
    with hold(store, WHAT, untold, QUICK) as first:
        mine = first.prefix(["k"])
        left_by(store, mine)
        taken = note_of(store)
        store.write_bytes(mine, "a", b"1")
    assert note_of(store) == taken
