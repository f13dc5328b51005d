"""A folder's copy in the store: what is copied and in which order, what comes back, and what an outage does to it."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from test_store import bucket, s3_port  # noqa: F401

from sweeper import mirror
from sweeper.errors import RunFailed
from sweeper.mirror import Mirror
from sweeper.storage import Storage


class Watched(Storage):
    """A store that remembers what was written to it, and may be away."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.written: list[str] = []
        self.is_away = False

    def write(self, name: str, data: bytes) -> None:
        if self.is_away:
            raise RunFailed("store: is away")
        self.written.append(name.removeprefix("runs/a/"))
        super().write(name, data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder as it may be at any moment."""
    hidden = (".lock", ".work/train/x", ".a.csv.7.part")
    for name in ("done.json", "journal.log", "rungs.jsonl", "models/1/config.json", *hidden):
        path = tmp_path / "here" / "a1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "here"


def copied(uri: str) -> dict[str, str]:
    below = Path(uri) / "runs" / "a"
    return {path.relative_to(below).as_posix(): path.read_text() for path in below.rglob("*") if path.is_file()}


def test_rungs_are_copied_before_the_journal_and_the_marker_last_and_nothing_hidden(run: Path, tmp_path: Path) -> None:
    store = Watched(str(tmp_path / "store"))
    Mirror(store, "runs/a", run).push()
    assert store.written == ["a1/rungs.jsonl", "a1/journal.log", "a1/models/1/config.json", "a1/done.json"]


def test_only_what_changed_is_copied_again_and_what_has_gone_goes(run: Path, tmp_path: Path) -> None:
    store = Watched(str(tmp_path / "store"))
    kept = Mirror(store, "runs/a", run)
    kept.push()
    store.written.clear()
    with (run / "a1" / "journal.log").open("a") as file:
        file.write(" and more")
    (run / "a1" / "models" / "1" / "config.json").unlink()
    kept.push()
    assert store.written == ["a1/journal.log"]
    assert set(copied(store.uri)) == {"a1/rungs.jsonl", "a1/journal.log", "a1/done.json"}
    assert copied(store.uri)["a1/journal.log"] == "journal.log and more"


def test_a_link_to_a_folder_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "space.yaml").write_text("")
    (run / "b2").symlink_to(tmp_path / "earlier")
    store = Watched(str(tmp_path / "store"))
    Mirror(store, "runs/a", run).push()
    assert not [name for name in store.written if name.startswith("b2")]


def test_what_comes_back_is_what_was_copied_and_may_spare_what_is_there(run: Path, tmp_path: Path) -> None:
    store = Storage(str(tmp_path / "store"))
    Mirror(store, "runs/a", run).push()
    home = Mirror(store, "runs/a", tmp_path / "home")
    assert sorted(home.pull(replace=True)) == sorted(copied(store.uri))
    journal = tmp_path / "home" / "a1" / "journal.log"
    assert journal.read_text() == "journal.log"
    journal.write_text("newer")
    (tmp_path / "home" / "a1" / "rungs.jsonl").unlink()
    home.pull(replace=False)
    assert journal.read_text() == "newer"
    assert (tmp_path / "home" / "a1" / "rungs.jsonl").exists()
    home.pull(replace=True)
    assert journal.read_text() == "journal.log"


def test_a_bucket_does_as_well_as_a_folder(run: Path, tmp_path: Path, bucket: str) -> None:  # noqa: F811
    kept = Mirror(Storage(f"s3://{bucket}/p"), "runs/a", run)
    assert kept.pull(replace=True) == []
    kept.push()
    (run / "a1" / "rungs.jsonl").unlink()
    kept.push()
    home = Mirror(Storage(f"s3://{bucket}/p"), "runs/a", tmp_path / "home")
    assert home.pull(replace=True) == ["a1/journal.log", "a1/models/1/config.json", "a1/done.json"]
    assert (tmp_path / "home" / "a1" / "models" / "1" / "config.json").read_text() == "models/1/config.json"


def test_a_store_that_names_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    class Hostile(Storage):
        def files(self, name: str, deep: bool) -> dict[str, tuple[int, str | None]]:
            return {"../../.bashrc": (1, None)}

    with pytest.raises(RunFailed, match=r"'\.\./\.\./\.bashrc'"):
        Mirror(Hostile(str(tmp_path / "store")), "runs/a", tmp_path / "home").pull(replace=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RunFailed])
def test_the_last_copy_is_made_however_the_run_ends(
    run: Path, tmp_path: Path, error: type[BaseException] | None
) -> None:
    store = Watched(str(tmp_path / "store"))
    with pytest.raises(error) if error is not None else nullcontext(), Mirror(store, "runs/a", run).kept():
        (run / "a1" / "last").write_text("x")
        if error is not None:
            raise error("its own")
    assert "a1/last" in copied(store.uri)


def test_copies_are_made_while_the_run_goes_on_and_an_outage_is_made_up_for(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "EVERY_S", 0.01)
    store = Watched(str(tmp_path / "store"))
    store.is_away = True
    with Mirror(store, "runs/a", run).kept():
        assert store.written == []
        store.is_away = False
        while "a1/done.json" not in store.written:
            pass
    assert set(copied(store.uri)) == set(store.written)


def test_an_outage_at_the_end_is_told_unless_the_run_itself_failed(run: Path, tmp_path: Path) -> None:
    store = Watched(str(tmp_path / "store"))
    store.is_away = True
    with pytest.raises(RunFailed, match="is away"), Mirror(store, "runs/a", run).kept():
        pass
    with pytest.raises(RunFailed, match="its own"), Mirror(store, "runs/a", run).kept():
        raise RunFailed("its own")
