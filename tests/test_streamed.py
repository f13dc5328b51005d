"""Images that are read while the training goes on are the same ones, each once a pass, and few at a time in memory."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samples import SIZE, VIEWS, MemorySlot, always, commit_images, trial_config
from test_batches import commit_adapted, commit_synthetic, commit_targets, sample_ids

from sweeper import data_cache, decoded, row_groups
from sweeper.batches import DataRefs, StreamedSplit, TrialData
from sweeper.data_cache import DataCache
from sweeper.errors import RunFailed
from sweeper.feeding import BatchStream
from sweeper.store import Store
from sweeper.streamed import ShuffledPieces, StreamedImages
from sweeper.train import fit

CPU = torch.device("cpu")
COUNTS = {"train": 30, "val": 6, "test": 6}
BYTES = 3 * SIZE**2
NUM, ROWS = 40, 4  # images, and those of a piece


def image(number: int) -> np.ndarray:
    return np.full((3, SIZE, SIZE), number, dtype=np.uint8)


def pieces(read: list[int], num: int = NUM) -> StreamedImages:
    """Image n says n; what is read is noted."""

    def reading(piece: int) -> np.ndarray:
        read.append(piece)
        return np.stack([image(ROWS * piece + row) for row in range(ROWS)])

    return StreamedImages(np.arange(num) // ROWS, np.arange(num) % ROWS, SIZE, reading)


def shown(reader: ShuffledPieces, index: np.ndarray, number: int) -> list[int]:
    out = np.empty((len(index), 3, SIZE, SIZE), dtype=np.uint8)
    reader.read_into(out, index, np.full(len(index), number))
    assert all((one == one[0, 0, 0]).all() for one in out)
    return [int(one[0, 0, 0]) for one in out]


@pytest.mark.parametrize("window", [1, 3 * ROWS, NUM, 10 * NUM])
def test_a_pass_shows_each_image_once_window_by_window(window: int) -> None:
    reader = ShuffledPieces(pieces([]), seed=1, window_bytes=window * BYTES)
    orders = [reader.order(number).tolist() for number in range(3)]
    assert all(sorted(order) == list(range(NUM)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert orders == [ShuffledPieces(pieces([]), 1, window * BYTES).order(number).tolist() for number in range(3)]
    assert orders[0] != ShuffledPieces(pieces([]), 2, window * BYTES).order(0).tolist()
    rows = max(window, ROWS)
    for order in orders:
        first = [image // ROWS for image in order[:rows]]
        assert len(set(first)) == min(NUM // ROWS, -(-rows // ROWS)), "a window is whole pieces"
    if window == 3 * ROWS:
        assert orders[0][: 3 * ROWS] != sorted(orders[0][: 3 * ROWS], key=lambda n: n // ROWS), "and mixes them"


def test_each_piece_is_read_once_a_pass_and_few_are_held() -> None:
    read: list[int] = []
    reader = ShuffledPieces(pieces(read), seed=1, window_bytes=2 * ROWS * BYTES)
    for number in range(2):
        order = reader.order(number)
        for start in range(0, NUM, 5):
            index = order[start : start + 5]
            assert shown(reader, index, number) == index.tolist()
            assert len(reader._held) <= 3 * 2
    _settled(reader)
    assert sorted(read[: NUM // ROWS]) == list(range(NUM // ROWS))
    assert len(read) <= 2 * NUM // ROWS + 2 + 2, "twice, the next window, and one that two passes met in"


def test_the_next_window_is_read_before_it_is_asked_for() -> None:
    read: list[int] = []
    reader = ShuffledPieces(pieces(read), seed=1, window_bytes=2 * ROWS * BYTES)
    shown(reader, reader.order(0)[:1], 0)
    _settled(reader)
    assert set(read) == {int(n) // ROWS for n in reader.order(0)[: 4 * ROWS]}
    shown(reader, reader.order(0)[-1:], 0)
    _settled(reader)
    assert {int(n) // ROWS for n in reader.order(1)[: 2 * ROWS]} <= reader._held.keys(), "of the next pass"


def _settled(reader: ShuffledPieces) -> None:
    for future in list(reader._held.values()):
        future.result()


def test_any_place_may_be_turned_to() -> None:
    reader = ShuffledPieces(pieces([]), seed=1, window_bytes=2 * ROWS * BYTES)
    for number, start in ((3, 30), (0, 5), (7, 0), (3, 30)):
        index = reader.order(number)[start : start + 7]
        assert shown(reader, index, number) == index.tolist()


def test_what_a_read_fails_with_is_what_the_training_sees() -> None:
    def gone(_: int) -> np.ndarray:
        raise RunFailed("store: gone")

    reader = ShuffledPieces(replace(pieces([]), read=gone), seed=1)
    with pytest.raises(RunFailed, match="store: gone"):
        shown(reader, np.arange(3), 0)


def read(store: Store, refs: DataRefs) -> TrialData:
    needs = frozenset({"logits"})
    return DataCache(store).trial_data(refs, needs=needs, view_config=VIEWS, view_seed=5, with_test=False)


@pytest.fixture
def both(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TrialData, TrialData]:
    """The same data, held and streamed: real images, seven synthetic ones of two sets, and targets."""
    commit_images(store, COUNTS)
    commit_synthetic(store, "first", 0, 2)
    commit_synthetic(store, "second", 2, 4)
    ids = {"of-images": sample_ids(30)}
    ids |= {
        f"of-{start}": [f"synthetic/{label}/{start + more}" for label in range(3) for more in range(2)]
        for start in (0, 2)
    }
    for key, of in ids.items():
        commit_targets(store, key, of)
    refs = DataRefs(
        images="images",
        synthetic=("first", "second"),
        num_synthetic=7,
        teachers=(replace(commit_adapted(store, "adapted", 4), targets=("of-images", "of-0", "of-2")),),
    )
    held = read(store, refs)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "another"))
    monkeypatch.setenv("SWEEPER_CACHE_GB", "0")
    monkeypatch.setattr(data_cache, "memory_free", lambda: COUNTS["val"] * BYTES)
    return held, read(store, refs)


def test_streamed_images_are_those_that_would_have_been_held(both: tuple[TrialData, TrialData]) -> None:
    held, streamed = both
    assert isinstance(streamed.train, StreamedSplit)
    assert len(streamed.train) == len(held.train) == 37
    assert (streamed.num_real, streamed.keys_N.tolist()) == (held.num_real, held.keys_N.tolist())
    assert torch.equal(streamed.train.labels_B, held.train.labels_B)
    one, other = (BatchStream(data, batch_size=5, seed=3, device=CPU) for data in both)
    seen: dict[int, list[int]] = {0: [], 1: []}
    for start in range(0, 74, 5):
        for data, stream in ((held, one), (streamed, other)):
            index, number = stream.indices(start)
            assert torch.equal(stream._whole(index, number), held.train.images_BCHW[index])
            batch: Any = stream.batch(start)
            assert batch.num_real == int((batch.index_B < data.num_real).sum())
            assert torch.equal(batch.labels_B, held.train.labels_B[batch.index_B])
        for place, q in zip(index.tolist(), number.tolist(), strict=True):
            seen.setdefault(q, []).append(place)
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(37))
    ranks = [BatchStream(streamed, batch_size=6, seed=3, device=CPU, rank=rank, num_ranks=2) for rank in range(2)]
    parts = torch.cat([rank.batch(12).index_B for rank in ranks])
    assert sorted(parts.tolist()) == sorted(
        BatchStream(streamed, batch_size=6, seed=3, device=CPU).indices(12)[0].tolist()
    )


def test_a_streamed_training_ends_where_it_ends_after_a_restart(both: tuple[TrialData, TrialData]) -> None:
    streamed = replace(both[1], source=None)
    config = trial_config(epochs=3, batch_size=8)

    def trained(slot: MemorySlot, go_on: Any = always) -> list[float]:
        return [epoch[1] for epoch in fit(config, streamed, seed=0, device=CPU, slot=slot, report=go_on).curve]

    whole = trained(MemorySlot())
    assert len(whole) == 3

    class Urgent(MemorySlot):
        def is_urgent(self) -> bool:
            return True

    class Cut(BaseException):
        pass

    slot = Urgent()

    def cut(report: Any) -> bool:
        if report.epoch == 2:  # of which the first one was saved
            raise Cut
        return True

    with pytest.raises(Cut):
        trained(slot, cut)
    assert slot.state is not None
    assert trained(MemorySlot(slot.state)) == whole


def test_images_of_more_bytes_than_there_is_memory_are_never_asked_for(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An array of them could not even be made."""
    commit_images(store, COUNTS)
    laid_out = decoded.laid_out

    def vast(index: Any, files: Any, size: int) -> Any:
        made = laid_out(index, files, size)
        too_many = len(index) == COUNTS["train"]
        return made | ({"images": replace(made["images"], shape=(10**12, 3, size, size))} if too_many else {})

    monkeypatch.setattr(decoded, "laid_out", vast)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "another"))
    assert isinstance(read(store, DataRefs(images="images")).train, StreamedSplit)


def test_a_piece_that_was_changed_is_not_trained_on(store: Store) -> None:
    """Its pages say so; the artifact is forgotten, so that the next run makes it anew."""
    record = commit_images(store, COUNTS)
    groups = row_groups.listed(store, record)
    assert sum(rows for *_, rows in groups) == record.rows
    file, number, rows = groups[3]
    whole = row_groups.read(store, record, file, number, ["image", "label"])
    assert (whole.num_rows, whole.column_names) == (rows, ["image", "label"])
    path = Path(store.path(f"{record.prefix}/{record.files[file].name}"))
    content = bytearray(path.read_bytes())
    place = content.index(whole["image"][0].as_py()[:64])
    content[place + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFailed, match="was changed since it was made; run again to rebuild images"):
        row_groups.read(store, record, file, number, ["image"])
    assert store.get("images") is None


def test_pieces_are_read_by_several_threads_at_a_time(both: tuple[TrialData, TrialData]) -> None:
    _, streamed = both
    assert isinstance(streamed.train, StreamedSplit)
    images = streamed.train.images_BCHW
    wrong: list[int] = []

    def reading(piece: int) -> None:
        for _ in range(20):
            if not np.array_equal(images.read(piece), first[piece]):
                wrong.append(piece)

    first = {int(piece): images.read(int(piece)) for piece in np.unique(images.piece_N)}
    threads = [threading.Thread(target=reading, args=(piece,)) for piece in first]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
