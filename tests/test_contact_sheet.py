"""Contact sheets: the right images in the right rows, whatever the classes are called."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from small_sweep import SIZE, Built

from sweeper import contact_sheet
from sweeper.contact_sheet import ACROSS, GAP, LABEL, MAX_CLASSES, TILE

HOSTILE = ["../../x", "$\\frac{1}{2}$", "a\nb\x1b[31m", "日本語 猫", "n" * 5000, "", "<img src=x>"]


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def tile(sheet: np.ndarray, row: int, column: int, columns: int, side: int = TILE) -> np.ndarray:
    """One of the images, which end at the right edge."""
    top, left = GAP + row * (side + GAP), sheet.shape[1] - (columns - column) * (side + GAP)
    return sheet[top : top + side, left : left + side]


def test_a_row_holds_the_images_of_its_class_pixel_by_pixel() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (30, 16, 16, 3), dtype=np.uint8)
    raw = [image.tobytes() for image in pixels]
    table = pa.table({"label": [i % 3 for i in range(30)], "index": [i // 3 for i in range(30)], "image": raw})
    table = table.take(rng.permutation(30))
    sheet = opened(contact_sheet.drawn(contact_sheet.rows_of(table, 16), ["a", "b", "c"]))
    left = sheet.shape[1] - 10 * (TILE + GAP)
    assert sheet.shape[0] == GAP + 3 * (TILE + GAP)
    assert 2 * GAP < left < LABEL
    for number in range(30):
        shown = tile(sheet, number % 3, number // 3, 10)
        np.testing.assert_array_equal(shown, pixels[number].repeat(4, axis=0).repeat(4, axis=1))
    for row in range(3):
        assert (sheet[GAP + row * (TILE + GAP) :][:TILE, :left] < 128).any()  # its name


def test_of_many_classes_some_are_shown_the_first_and_the_last_among_them() -> None:
    labels = np.repeat(np.arange(100), 12)
    pixels = [bytes([label] * 192) for label in labels]
    table = pa.table({"label": labels, "split": ["train"] * 1200, "image": pixels})
    rows = contact_sheet.rows_of(table, 8)
    assert len(rows) == MAX_CLASSES
    assert list(rows)[:2] + list(rows)[-1:] == [0, 9, 99]
    assert {len(row) for row in rows.values()} == {ACROSS}
    assert {int(row[0][0, 0, 0]) for row in rows.values()} == set(rows)


@pytest.mark.parametrize(("side", "shown"), [(8, 64), (32, 64), (48, 96), (100, 100), (224, 128)])
def test_small_images_are_enlarged_by_whole_factors_and_large_ones_made_small(side: int, shown: int) -> None:
    image = np.zeros((side, side, 3), dtype=np.uint8)
    sheet = opened(contact_sheet.drawn({0: [image]}, ["a"]))
    assert sheet.shape[0] == shown + 2 * GAP
    assert (tile(sheet, 0, 0, 1, shown) == 0).all()


def test_names_from_data_are_only_text() -> None:
    rows = {label: [np.zeros((8, 8, 3), dtype=np.uint8)] for label in range(len(HOSTILE))}
    sheet = opened(contact_sheet.drawn(rows, HOSTILE))
    assert sheet.shape[0] == GAP + len(HOSTILE) * (TILE + GAP)
    left = sheet.shape[1] - TILE - GAP
    assert LABEL < left <= LABEL + 2 * GAP + 1
    assert (sheet[:, left - GAP : left] == 255).all()  # the longest ends before the images


def test_the_sheets_of_a_run_show_training_images_and_each_source(built: Built, tmp_path: Path) -> None:
    contact_sheet.write(tmp_path, built.plan, built.store, built.records)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real.png", "synthetic-tiny.png"]
    table = built.store.read_table(built.records[built.plan.images.key])
    rows = [row for row in table.to_pylist() if row["split"] == "train"]
    sheet, scale = opened((tmp_path / "real.png").read_bytes()), TILE // SIZE
    for label in range(10):
        of = [row["image"] for row in rows if row["label"] == label]
        assert len(of) == 2
        shown = {tile(sheet, label, column, 2)[::scale, ::scale].tobytes() for column in range(2)}
        assert shown == set(of)
    synthetic = built.store.read_table(built.records[built.plan.synthetic["tiny"][0].key])
    sheet = opened((tmp_path / "synthetic-tiny.png").read_bytes())
    for row in synthetic.to_pylist():
        assert tile(sheet, row["label"], row["index"], 2)[::scale, ::scale].tobytes() == row["image"]


def test_sheets_that_are_there_stay_and_missing_ones_are_made(built: Built, tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"the user's own")
    written = contact_sheet.write(tmp_path, built.plan, built.store, built.records)
    assert written == [tmp_path / "synthetic-tiny.png"]
    assert (tmp_path / "real.png").read_bytes() == b"the user's own"
    assert (tmp_path / "synthetic-tiny.png").exists()
