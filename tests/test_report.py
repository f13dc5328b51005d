from __future__ import annotations

import base64
import gc
import hashlib
import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_samples import NASTY, cost, final_row, final_rows, trial_row, trial_rows, write_full_run, write_run

from sweeper import figure_labels, figures, findings, page_data, page_tables, report, tables
from sweeper.results import RunFolder


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
        if self.tags and self.tags[-1][0] != "script":
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


def test_the_page_needs_no_network_and_runs_only_its_own_two_scripts(page: str) -> None:
    tags = _Page(page).tags
    assert not {"iframe", "object", "embed", "base", "form"} & {tag for tag, _ in tags}
    assert [attributes["href"] for tag, attributes in tags if tag == "link"] == ["data:,"]
    sources = [str(attributes["src"]) for _, attributes in tags if "src" in attributes]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert not any("src" in attributes for tag, attributes in tags if tag == "script")
    (policy,) = [str(a["content"]) for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data: blob:")
    bodies = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    sums = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    assert rules["script-src"] == " ".join(f"'sha256-{one}'" for one in sums)
    assert len(sums) == 2
    ours = page.replace(bodies[0], "")
    assert not re.search(r"https?://|@import|url\(", ours)


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
    assert page_tables.ledger(charges).rows == (
        ("train", "cpu", "2", "30", "4.000 CPU-s"),
        ("adapt", "NVIDIA H100", "1", "1,000", "2.000 GPU-h"),
    )


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def _count(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - colour).max(axis=-1) <= 3).sum())


def test_the_picture_shows_trials_and_front() -> None:
    records = [row.record() for row in final_rows()]
    pixels = _pixels(figures.front(records, [row.record() for row in trial_rows()])["png"])
    assert pixels.shape == (870, 1020, 3)
    assert _count(pixels, (0x22, 0x22, 0x22)) > 3000
    bare = _pixels(figures.front(records, [])["png"])
    assert np.abs(pixels - bare).max() > 100


@pytest.fixture
def quiet(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """Nothing warns; what tests before it left open is told of before, and not when it happens to be collected."""
    gc.collect()
    recwarn.clear()
    yield
    assert [str(each.message) for each in recwarn] == []


@pytest.mark.parametrize("students", [["a$b$c"], ["x" * 70] * 3, ["数字"], []])
@pytest.mark.usefixtures("quiet")
def test_odd_names_and_few_points_give_a_picture_without_warnings(students: list[str]) -> None:
    records = [final_row(rank, student=name).record() for rank, name in enumerate(students, start=1)]
    figures.front(records, [])


def test_labels_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        final_row(rank, accuracy_val=0.95 - 0.002 * rank, cost=cost(20.0 - 0.5 * rank, taught=False)).record()
        for rank in range(1, 7)
    ]
    boxes: list[Any] = []
    place = figure_labels.place

    def kept(*arguments: Any) -> Any:
        boxes.extend(place(*arguments))
        return boxes

    monkeypatch.setattr(figure_labels, "place", kept)
    figures.front(rows, [row.record() for row in trial_rows()])
    assert len(boxes) == 6
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_trial_that_learnt_nothing_does_not_squeeze_the_front() -> None:
    assert figures.floor([0.95, 0.97, 0.99], [0.1, 0.94]) == pytest.approx(0.85)
    assert figures.floor([0.95, 0.97], [0.93, 0.94]) == pytest.approx(0.93)
    assert figures.floor([], [0.2, 0.4]) == pytest.approx(0.2)


def test_a_long_list_of_classes_is_cut() -> None:
    assert report._fact(["a", "b"]) == "a, b"
    assert report._fact([str(n) for n in range(1000)]).endswith("28, 29 and 970 more")


def test_what_lies_damaged_in_a_folder_does_not_take_the_page_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = write_full_run(tmp_path / "tiny" / "a1")
    monkeypatch.setattr(page_data, "MAX_SHEET_BYTES", 10)
    (run.path / "real.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf of a picture")
    (run.path / "forecast.json").write_text('{"missing": [], "forecast": {"total": {"seconds": 1}}, "fact": {"a": 3}}')
    found = _Page(report.html(run.contents()).decode())
    assert "Forecast against fact" not in found.text
    assert "Real training images" in found.text


IMPORTANCE = [
    {"objective": "accuracy", "parameter": "train.lr", "importance": 0.75, "trials": 24},
    {"objective": "accuracy", "parameter": f"loss.{NASTY}", "importance": 0.245, "trials": 11},
    {"objective": "accuracy", "parameter": "student.model", "importance": 0.005, "trials": 24},
    {"objective": "gpu_hours", "parameter": "student.model", "importance": 1.0, "trials": 24},
]
CURVE = [
    {"seconds": 8.0, "hypervolume": 0.0},
    {"seconds": 20.0, "hypervolume": 0.5},
    {"seconds": 30.0, "hypervolume": 0.58},
    {"seconds": 80.0, "hypervolume": 0.6},
]
RUNGS = [
    {"rung": 0, "epochs": 2, "trials": 12, "spearman": 0.81},
    {"rung": 1, "epochs": 6, "trials": 9, "spearman": 0.93},
    {"rung": 2, "epochs": 18, "trials": 3, "spearman": 1.0},
]


def _full_run(path: Path) -> RunFolder:
    run = write_run(path)
    run.write_importance(IMPORTANCE)
    run.write_hypervolume(CURVE)
    run.write_rungs(RUNGS)
    run.write_environment(
        device="cpu", facts={"dataset": "40 images", report.WINNERS_CURSE: f"Lost 1.2 points {NASTY}"}
    )
    run.write_report()
    return run


def _page(run: RunFolder) -> str:
    return (run.path / "report.html").read_text(encoding="utf-8")


def test_what_mattered_is_told(tmp_path: Path) -> None:
    text = _page(_full_run(tmp_path / "tiny" / "a1"))
    found = _Page(text)
    bars = [a["style"] for tag, a in found.tags if tag == "div" and "style" in a]
    assert bars == ["width: 75.0%", "width: 24.5%", "width: 100.0%"]
    for words in (
        "What mattered",
        "For accuracy",
        "For cost",
        "train.lr",
        "1 other below 1%",
        "Hypervolume 0.600 at the end; nine tenths of it were there after 30.0 of 80.0 CPU-s.",
        "Spearman 0.81 over 12 trials at epoch 2, 0.93 over 9 trials at epoch 6 (too few to tell at epoch 18).",
    ):
        assert words in found.text, words
    assert not [attributes for _, attributes in found.tags if "onerror" in attributes]
    sources = [str(attributes["src"]) for _, attributes in found.tags if "src" in attributes]
    assert len(sources) == 2
    assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_the_winners_curse_stands_below_the_front_and_not_in_the_head(tmp_path: Path) -> None:
    text = _Page(_page(_full_run(tmp_path / "tiny" / "a1"))).text
    assert text.count("Winner's curse: Lost 1.2 points") == text.count("Lost 1.2 points") == 1
    assert text.index("Accuracy against device-hours") < text.index("Lost 1.2") < text.rindex("What mattered")
    assert report.WINNERS_CURSE not in text


def test_why_nothing_mattered_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    run.write_environment(device="cpu", facts={report.WHAT_MATTERED: "5 trials ended, too few to tell"})
    run.write_report()
    text = _Page(_page(run)).text
    assert (
        text.rindex("What mattered")
        < text.index("5 trials ended, too few to tell")
        < text.index("Where the GPU-hours went")
    )
    assert "For accuracy" not in text


def test_what_an_older_run_did_not_keep_has_no_section(page: str) -> None:
    text = _Page(page).text
    for words in ("For accuracy", "Early stopping", "Forecast against fact", "gets wrong", "The teachers"):
        assert words not in text


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> _Page:
    run = write_full_run(tmp_path_factory.mktemp("everything") / "tiny" / "a1")
    run.write_importance(IMPORTANCE)
    run.write_rungs(RUNGS)
    run.write_report()
    return _Page(_page(run))


@pytest.mark.parametrize(
    "words",
    [
        "The most accurate student: test_resnet taught by cnn with ce+kl+align_uniform, 2x synthetic images (row 1)",
        "teachercnn, none, vit",  # what was tried
        f"Synthetic images of {re.sub('[^a-z]', '_', NASTY)}",
        "linear probe",
        "The same trainings, teachers online: 1 min 06 s",  # 0.8 + 1.3 + 54 + 9.4
        "Trainings asked a teacher 160,000 times; the cache holds 16,000 views and took 5.4 s.",
        "would have taken 54 s: the cache saved 49 s of device time.",
        "dog80.0%20cat (4)",
        "Forecast against fact",
        "+11%",
        "Early accuracy ranked trials like",
    ],
)
def test_a_reader_who_was_not_there_finds(everything: _Page, words: str) -> None:
    assert words in re.sub(r"\s*\n\s*", "", everything.text)


def test_the_answer_names_a_cheaper_row_that_the_spread_does_not_tell_apart(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    assert "Within its spread" not in page_tables.answer(run.contents()), "the second is five deviations below"
    run.write_pareto([final_row(1, accuracy_test_std=0.03), *final_rows()[1:]])
    assert "Within its spread and cheaper: test_vit taught by vit with ce+kl, 0.5x" in page_tables.answer(
        run.contents()
    )
    run.write_pareto([])
    assert page_tables.answer(run.contents()) == ""


def test_what_the_script_reads_can_not_end_its_element(tmp_path: Path) -> None:
    hostile = "</script><!-- \u2028 & " + NASTY
    text = page_data.as_json({"a": [hostile, float("nan"), 0.1 + 0.2]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": [hostile.replace(" \u2028", "\n"), None, 0.3]}


def test_of_very_many_trials_the_front_and_the_best_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_data, "MAX_TRIALS", 5)
    records = [row.record() for row in trial_rows()]
    records[0]["on_front"] = True  # the worst of all
    found = page_data.drawn_trials(records)
    best = sorted((r for r in records[1:] if r["accuracy_val"] is not None), key=lambda r: -r["accuracy_val"])[:4]
    assert [r["trial"] for r in found] == sorted([0, *(r["trial"] for r in best)])


def test_a_large_contact_sheet_becomes_a_photograph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = write_full_run(tmp_path / "tiny" / "a1")
    contents = run.contents()

    def kinds() -> list[str]:
        tags = _Page(report.html(contents).decode()).tags
        return [str(a["src"]).partition(";")[0].removeprefix("data:image/") for tag, a in tags if tag == "img"]

    assert kinds() == ["png"] * 4, "two sheets, the front and its hypervolume"
    monkeypatch.setattr(page_data, "MAX_SHEET_BYTES", 10)
    assert kinds() == ["jpeg", "jpeg", "png", "png"]


def test_equal_records_give_equal_pages(tmp_path: Path) -> None:
    one, two = (_full_run(tmp_path / side / "tiny" / "a1") for side in "ab")
    assert _page(one) == _page(two)


def test_the_curve_is_drawn_from_its_records() -> None:
    pixels = _pixels(figures.progress_png(CURVE, "cpu"))
    assert pixels.shape == (544, 1440, 3)
    blue = np.abs(pixels - (0x00, 0x72, 0xB2)).max(axis=-1) <= 3
    rows, columns = np.nonzero(blue)
    grey = _count(pixels, (0xEE, 0xEE, 0xEE))
    assert grey > 0.05 * pixels.size / 3, "the shared artifacts' tenth"
    assert columns.max() - columns.min() > 1200
    early, late = (np.median(rows[np.abs(columns - at) < 5]) for at in (columns.min() + 240, columns.max() - 240))
    assert late < early, "it rises"
    assert figures.progress_png(CURVE[:1], "cpu") != figures.progress_png(CURVE, "cpu")


@pytest.mark.parametrize("curve", [[{"seconds": 0.0, "hypervolume": 0.0}], [{"seconds": 9.0, "hypervolume": 0.0}] * 2])
@pytest.mark.usefixtures("quiet")
def test_an_empty_curve_gives_a_picture_without_warnings(curve: list[dict[str, float]]) -> None:
    figures.progress_png(curve, "cpu")
    assert page_tables.progress_sentence(curve, "cpu") == "No trial was better than chance."


@pytest.mark.parametrize(
    ("spearman", "words"),
    [
        (0.7, "trials like their"),
        (0.69, "only roughly like"),
        (0.4, "only roughly like"),
        (0.39, "unlike"),
        (-0.5, "raise `grace` or `keep`"),
    ],
)
def test_the_worst_rung_decides_whether_early_stopping_is_trusted(spearman: float, words: str) -> None:
    said = findings.rungs_sentence([*RUNGS, {"rung": 3, "epochs": 9, "trials": 8, "spearman": spearman}])
    assert words in said
    assert ("raise" in said) == (spearman < 0.4)


@pytest.mark.parametrize(("trials", "spearman", "most"), [(7, 0.9, "7 trials"), (1, None, "1 trial passed")])
def test_too_few_trials_at_every_rung_are_said_to_be(trials: int, spearman: float | None, most: str) -> None:
    rungs = [{"rung": 0, "epochs": 2, "trials": trials, "spearman": spearman}]
    assert f"can not be told: at most {most}" in findings.rungs_sentence(rungs)
    assert findings.rungs(rungs).rows == (("0", "2", str(trials), "too few to tell"),)


def test_the_front_says_how_sure_it_is_where_that_is_known() -> None:
    chances = (0.974, None, 0.031)
    records = [row.record() | {"front_probability": p} for row, p in zip(final_rows(), chances, strict=True)]
    table = tables.pareto(records)
    column = table.headers.index("on the front")
    assert [row[column] for row in table.rows] == ["97%", "-", "3%"]
    assert "on the front" in table.right
    assert "on the front" in table.caption
    old = tables.pareto([row.record() for row in final_rows()])
    assert old.headers == tuple(h for h in table.headers if h != "on the front")
    assert old.rows == tuple((*row[:column], *row[column + 1 :]) for row in table.rows)
    assert "on the front" not in old.caption
