from __future__ import annotations

import csv
import os
import statistics
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_samples import ablation_rows, charges, final_row, final_rows, trial_row, trial_rows, write_run

from sweeper.results import COLUMNS, RunFolder, mean_and_std

CONTRACT = [
    "rank",
    "trial",
    "teacher",
    "student",
    "loss",
    "synthetic_ratio",
    "epochs",
    "accuracy_val",
    "accuracy_test",
    "accuracy_test_std",
    "seeds",
    "gpu_hours",
    "gpu_hours_amortized",
    "gpu_hours_adapt",
    "gpu_hours_targets",
    "gpu_hours_synthetic",
    "gpu_hours_train",
    "params",
    "device",
]


def test_columns_are_the_contract() -> None:
    assert list(COLUMNS) == CONTRACT


def test_every_file_has_the_contracted_columns_first(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    with (run.path / "pareto.csv").open(newline="") as file:
        assert next(csv.reader(file))[: len(CONTRACT)] == CONTRACT
    for name in ("pareto.parquet", "trials.parquet", "ablation.parquet"):
        assert pq.read_schema(run.path / name).names[: len(CONTRACT)] == CONTRACT
    names = pq.read_schema(run.path / "trials.parquet").names
    assert names[len(CONTRACT) :] == ["state", "error", "config", "on_front"]


def test_extra_columns_follow_and_may_not_shadow(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "n" / "r")
    run.write_trials([trial_row(1, extra={"lane": 3}), trial_row(2, extra={"restarts": 1})])
    assert pq.read_schema(run.path / "trials.parquet").names[-2:] == ["lane", "restarts"]
    assert [(t["lane"], t["restarts"]) for t in run.read_trials()] == [(3, None), (None, 1)]
    with pytest.raises(AssertionError, match="gpu_hours"):
        trial_row(1, extra={"gpu_hours": 0.0}).record()


def test_rows_come_back_with_every_digit(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    assert run.read_trials() == [row.record() for row in trial_rows()]
    assert run.read_pareto() == [row.record() for row in final_rows()]
    assert run.read_ablation() == [row.record() for row in ablation_rows()]
    assert [c["seconds"] for c in run.read_ledger()] == [c.seconds for c in charges()]
    assert run.read_curves()[0]["lr"] == 0.01
    for record in [*run.read_trials(), *run.read_pareto()]:
        parts = (record[f"gpu_hours_{stage}"] for stage in ("adapt", "targets", "synthetic", "train"))
        assert record["gpu_hours"] == pytest.approx(sum(parts), rel=1e-15)


def test_nan_is_missing_and_a_failed_trial_keeps_its_reason(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    failed = run.read_trials()[-1]
    assert (failed["state"], failed["error"], failed["accuracy_val"]) == ("failed", "loss is NaN at step 12", None)
    run.write_pareto([final_row(1, seeds=1, accuracy_test_std=float("nan"))])
    with (run.path / "pareto.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["accuracy_test_std"] == ""
    assert run.read_pareto()[0]["accuracy_test_std"] is None


def test_a_reason_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "n" / "r")
    run.write_trials([trial_row(1, state="failed", error="bad file \udcff.png \x1b[31m")])
    assert run.read_trials()[0]["error"] == "bad file  .png"


def test_no_trials_still_have_columns(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "n" / "r")
    run.write_trials([])
    run.write_curves([])
    run.write_ledger([])
    assert run.read_trials() == run.read_curves() == run.read_ledger() == []
    assert run.summary()["best_accuracy_val"] is None
    assert pq.read_schema(run.path / "curves.parquet").names == [
        "trial",
        "epoch",
        "accuracy_val",
        "loss",
        "train_seconds",
    ]


TABLES = {
    "importance": [{"objective": "accuracy", "parameter": "train.lr", "importance": 1 / 3, "trials": 9}],
    "hypervolume": [{"seconds": 0.1, "hypervolume": 0.0}, {"seconds": 2 / 3, "hypervolume": 0.7}],
    "rungs": [{"rung": 0, "epochs": 2, "trials": 9, "spearman": 0.8}, {"rung": 1, "epochs": 6, "trials": 1}],
}


@pytest.mark.parametrize("name", TABLES)
def test_what_mattered_comes_back_and_nothing_writes_no_file(tmp_path: Path, name: str) -> None:
    run = RunFolder(tmp_path / "n" / "r")
    path = run.path / f"{name}.parquet"
    run.path.mkdir(parents=True)
    write, read = getattr(run, f"write_{name}"), getattr(run, f"read_{name}")
    write([])
    assert not path.exists()
    assert read() == [], "older runs have no such file"
    write(TABLES[name])
    columns = list(TABLES[name][0])
    assert read() == [{column: record.get(column) for column in columns} for record in TABLES[name]]
    before = path.read_bytes()
    write(TABLES[name])
    assert path.read_bytes() == before
    write([])
    assert not path.exists(), "an earlier session's table does not outlive its records"


def test_the_report_reads_what_mattered(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    old = run.contents()
    assert (old.importance, old.hypervolume, old.rungs, old.progress_png) == ([], [], [], b"")
    for name, records in TABLES.items():
        getattr(run, f"write_{name}")(records)
    new = run.contents()
    assert (new.importance, new.hypervolume) == (TABLES["importance"], TABLES["hypervolume"])
    assert new.rungs[1]["spearman"] is None
    assert new.progress_png.startswith(b"\x89PNG")
    run.write_report()


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    one, two = write_run(tmp_path / "a" / "tiny" / "x"), write_run(tmp_path / "b" / "tiny" / "x")
    names = {path.name for path in one.path.iterdir()}
    assert names == {path.name for path in two.path.iterdir()} > {"pareto.png", "report.html", "pareto.parquet"}
    for name in names:
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes(), name


def test_a_write_that_dies_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    before = (run.path / "trials.parquet").read_bytes()

    def die(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        run.write_trials([])
    assert (run.path / "trials.parquet").read_bytes() == before
    assert not list(run.path.glob(".*"))


def test_finished_needs_the_marker_and_the_table(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    assert run.finished
    (run.path / "pareto.parquet").unlink()
    assert not run.finished
    run.write_pareto(final_rows())
    assert run.finished
    (run.path / "done.json").unlink()
    assert not run.finished


def test_finish_drops_what_a_killed_session_left(tmp_path: Path) -> None:
    run = write_run(tmp_path / "tiny" / "a1")
    (run.path / ".trials.parquet.1-2.part").write_bytes(b"half")
    (run.path / "models" / ".3.1-2.part").mkdir(parents=True)
    run.finish()
    assert not list(run.path.rglob("*.part"))


def test_a_model_is_replaced_as_a_whole(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "n" / "r")
    run.write_model("7", {"config.json": b"{}", "old.bin": b"1"})
    path = run.write_model("7", {"config.json": b"{1}", "model.safetensors": b"2"})
    assert path == run.path / "models" / "7"
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"config.json": b"{1}", "model.safetensors": b"2"}
    assert [p.name for p in (run.path / "models").iterdir()] == ["7"]


def test_mean_and_std_agree_with_the_standard_library() -> None:
    values = [0.91, 0.934, 0.927]
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(statistics.mean(values), rel=1e-14)
    assert std == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert mean_and_std([0.5])[1] != mean_and_std([0.5])[1]  # NaN


def test_environment_names_versions_and_facts(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "n" / "r")
    run.write_environment(device="cpu", facts={"classes": ["a", "b"]})
    found = run.read_environment()
    assert found["device"] == "cpu"
    assert found["packages"]["pyarrow"] == __import__("pyarrow").__version__
    assert {"python", "platform", "cpus", "commit", "command"} <= found.keys()
    assert found["facts"] == {"classes": ["a", "b"]}


def test_a_half_written_file_that_its_writer_finishes_meanwhile_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread replaces `status.json` once a second, also while a run is marked as finished."""
    run = RunFolder(tmp_path / "n" / "r")
    run.write_space({})
    (run.path / ".status.json.1-1.part").touch()
    is_dir = Path.is_dir
    monkeypatch.setattr(Path, "is_dir", lambda path: path.unlink() if path.suffix == ".part" else is_dir(path))
    run.finish()
    assert sorted(path.name for path in run.path.iterdir()) == ["done.json", "space.yaml"]
