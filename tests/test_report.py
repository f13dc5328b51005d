from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from run_samples import NASTY, cost, final_row, final_rows, trial_row, trial_rows, write_run

from sweeper import report


class _Page(HTMLParser):
    """Tags with attributes, and the text, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    run = write_run(tmp_path / "tiny" / "a1")
    run.write_trials([*trial_rows(), trial_row(24, state="failed", error=NASTY, accuracy_val=float("nan"))])
    run.write_pareto([final_row(1, student=NASTY), *final_rows()[1:]])
    run.write_report()
    return (run.path / "report.html").read_text(encoding="utf-8")


def test_the_page_says_everything(page: str) -> None:
    text = _Page(page).text
    for words in (
        "tiny/a1",
        "40 images",
        "0.958±0.004",
        "distilled+synthetic",
        "+7.5",
        "loss is NaN at step 12",
        "pyarrow",
    ):
        assert words in text
    assert "prefers-color-scheme: dark" in page


def test_the_page_needs_no_network_and_runs_no_script(page: str) -> None:
    tags = _Page(page).tags
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
    sources = [attributes["src"] for _, attributes in tags if "src" in attributes]
    assert len(sources) == 1
    assert str(sources[0]).startswith("data:image/png;base64,")
    assert not re.search(r"https?://|@import|url\(", page)


def test_markup_in_names_is_text(page: str) -> None:
    found = _Page(page)
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes]
    assert found.text.count(NASTY) >= 3  # a class in the head, a student in the table, the reason of a failed trial


def test_the_ledger_is_summed_by_stage_and_device() -> None:
    charges = [
        {"stage": "train", "device": "cpu", "seconds": 1.5, "units": 10},
        {"stage": "train", "device": "cpu", "seconds": 2.5, "units": 20},
        {"stage": "adapt", "device": "NVIDIA H100", "seconds": 7200.0, "units": 1000},
    ]
    assert report.ledger_summary(charges).rows == (
        ("train", "cpu", "2", "30", "4.000 CPU-s"),
        ("adapt", "NVIDIA H100", "1", "1,000", "2.000 GPU-h"),
    )


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def _count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - colour).max(axis=-1) <= 3).sum())


def test_the_picture_shows_trials_and_front() -> None:
    records = [row.record() for row in final_rows()]
    pixels = _pixels(report.png(records, [row.record() for row in trial_rows()]))
    assert pixels.shape == (896, 1440, 3)
    assert _count(pixels, (0x22, 0x22, 0x22)) > 3000
    bare = _pixels(report.png(records, []))
    assert np.abs(pixels - bare).max() > 100


@pytest.mark.parametrize("students", [["a$b$c"], ["x" * 70] * 3, ["数字"], []])
def test_odd_names_and_few_points_give_a_picture_without_warnings(
    students: list[str], recwarn: pytest.WarningsRecorder
) -> None:
    records = [final_row(rank, student=name).record() for rank, name in enumerate(students, start=1)]
    report.png(records, [])
    assert not recwarn.list


def test_labels_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        final_row(rank, accuracy_val=0.95 - 0.002 * rank, cost=cost(20.0 - 0.5 * rank, taught=False)).record()
        for rank in range(1, 7)
    ]
    boxes = []
    settle = report._settle

    def kept(*arguments: object) -> object:
        boxes.append(settle(*arguments))  # type: ignore[arg-type]
        return boxes[-1]

    monkeypatch.setattr(report, "_settle", kept)
    report.png(rows, [row.record() for row in trial_rows()])
    assert len(boxes) == 6
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_trial_that_learnt_nothing_does_not_squeeze_the_front() -> None:
    assert report._floor([0.95, 0.97, 0.99], [0.1, 0.94]) == pytest.approx(0.85)
    assert report._floor([0.95, 0.97], [0.93, 0.94]) == pytest.approx(0.93)
    assert report._floor([], [0.2, 0.4]) == pytest.approx(0.2)


def test_a_long_list_of_classes_is_cut() -> None:
    assert report._fact(["a", "b"]) == "a, b"
    assert report._fact([str(n) for n in range(1000)]).endswith("28, 29 and 970 more")
