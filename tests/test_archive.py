from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_samples import write_run

from sweeper.archive import FORMATS, export, find_run, list_runs
from sweeper.errors import InputError
from sweeper.results import RunFolder


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for label in ("digits/aaa111", "digits/aab222", "flowers/bbb333"):
        RunFolder(tmp_path / label).write_space({"name": label.split("/")[0], "seed": 0})
    return tmp_path


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("bbb", "flowers/bbb333"),
        ("flowers", "flowers/bbb333"),
        ("aab", "digits/aab222"),
        ("digits/aaa", "digits/aaa111"),
        ("digits/aaa111/", "digits/aaa111"),
    ],
)
def test_a_run_is_found_by_what_a_user_calls_it(results: Path, text: str, label: str) -> None:
    assert find_run(results, text).label == label
    assert find_run(results, str(results / label)).label == label


@pytest.mark.parametrize(
    ("text", "shown"),
    [("digits", "digits/aaa111, digits/aab222"), ("aa", "fits 2 runs"), ("flower", "did you mean 'flowers'")],
)
def test_an_ambiguous_or_unknown_run_is_refused_with_what_exists(results: Path, text: str, shown: str) -> None:
    with pytest.raises(InputError, match=shown):
        find_run(results, text)


def test_a_whole_run_id_wins_over_those_that_begin_with_it(results: Path) -> None:
    RunFolder(results / "digits/aaa1119").write_space({"name": "digits"})
    assert find_run(results, "aaa111").label == "digits/aaa111"


def test_without_runs_the_message_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sweeper run SPACE"):
        find_run(tmp_path / "nowhere", "x")
    assert list_runs(tmp_path / "nowhere") == []


def test_export_writes_every_format_from_the_stored_rows(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    paths = export(run, FORMATS, tmp_path / "out")
    assert sorted(path.name for path in paths) == sorted(
        [*(f"pareto.{name}" for name in FORMATS if name != "html"), "report.html"]
    )
    for name in ("pareto.csv", "pareto.md", "pareto.tex", "pareto.parquet", "pareto.png", "pareto.pdf", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (run.path / name).read_bytes()
    document = json.loads((tmp_path / "out" / "pareto.json").read_text())
    assert document["pareto"] == run.read_pareto() == pq.read_table(tmp_path / "out" / "pareto.parquet").to_pylist()
    assert len(document["trials"]) == 24


def test_export_refuses_what_it_cannot_do(results: Path) -> None:
    run = RunFolder(results / "digits/aaa111")
    with pytest.raises(InputError, match="no Pareto table yet"):
        export(run)
    with pytest.raises(InputError, match="'docx' is not a format"):
        export(run, ["docx"])
    assert sorted(path.name for path in run.path.iterdir()) == ["space.yaml"]
