"""`sweeper.run` and `sweeper.open`: the run of the command line, with data frames and models in place of files."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from command_line import environment
from run_samples import write_run

import sweeper
from sweeper import results_schema
from sweeper.errors import InputError, SpaceError

if TYPE_CHECKING:
    from small_student import Small

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "python_api.ipynb"
SPACE: dict[str, Any] = {
    "name": "tiny",
    "dataset": {"kind": "digits", "train_per_class": 2, "image_size": 16},
    "trial": {"student": {"model": {"choice": ["test_resnet", "test_vit"]}}, "train": {"epochs": 1, "epoch_size": 64}},
    "search": {"trials": 9, "sampler": "random", "scheduler": {"kind": "fifo"}},
    "finalists": {"count": 1, "seeds": 1, "ablate": False},
}


def test_the_tables_are_data_frames_with_the_columns_of_the_files(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "results" / "tiny" / "a1")
    results = sweeper.open("tiny", results=tmp_path / "results")
    assert results.path == folder.path
    assert results.finished
    for name in ("pareto", "trials", "curves", "ledger", "ablation"):
        frame, records = getattr(results, name), getattr(folder, f"read_{name}")()
        assert len(frame) == len(records)
        assert [*frame.columns] == [*records[0]]
        column = "seconds" if name == "ledger" else "trial"
        assert [*frame[column]] == [record[column] for record in records]
    assert results.trials.loc[0, "config"]["train"]["epochs"] == 40
    assert results.trials["accuracy_val"].isna().sum() == 1, "of the trial that failed"
    for name in ("importance", "hypervolume", "finalists"):
        frame = getattr(results, name)
        assert frame.empty
        assert [*frame.columns] == [*results_schema.TABLES[name][1]], "a table that is not there has its columns"
    assert results.best()["rank"] == 1
    assert results.document() == results_schema.document(folder)


def test_a_notebook_has_something_to_show(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "results" / "tiny" / "a1")
    results = sweeper.open(folder.path)
    assert repr(results) == "<sweeper.Results tiny/a1: finished, 24 trials, front of 3>"
    assert results._repr_html_().count("<tr") == 4
    picture = results.plot()
    assert picture._repr_png_() == (folder.path / "pareto.png").read_bytes()
    picture.save(tmp_path / "copy.png")
    assert (tmp_path / "copy.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_is_ready_to_use(small: Small) -> None:
    results = sweeper.open(small.run.path)
    model = results.model(1)
    assert not model.training
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    with torch.inference_mode():
        said = model((small.test.images_BCHW.float() / 255 - mean) / std).argmax(1)
    assert float((said == small.test.labels_B).float().mean()) == pytest.approx(small.accuracy)
    with pytest.raises(InputError, match="9 is not a row"):
        results.model(9)


def test_a_run_that_is_not_finished_has_tables_and_no_best_student(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "results" / "tiny" / "a1")
    (folder.path / "done.json").unlink()
    results = sweeper.open(folder.path)
    assert len(results.trials) == 24
    for ask in (results.best, results.plot):
        with pytest.raises(InputError, match="tiny/a1 is not finished"):
            ask()


def test_what_is_wrong_is_raised_with_every_problem_and_nothing_is_written(tmp_path: Path) -> None:
    broken = {**SPACE, "finalists": {"cuont": 1}, "search": {"trials": 0}}
    with pytest.raises(SpaceError) as caught:
        sweeper.run(broken, results=tmp_path / "results", store=tmp_path / "store")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["search.trials", "finalists.cuont"]
    with pytest.raises(InputError, match="overrides: belong to a file"):
        sweeper.run(sweeper.api._read(SPACE, ()), overrides={"search.trials": 2})
    with pytest.raises(InputError, match="no run below"):
        sweeper.open("nobody", results=tmp_path / "results")
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
def test_a_sweep_runs_and_the_same_space_opens_it_again(
    ray_session: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice as a mapping and once as a file: one run. Nothing is printed, and Ctrl-C is the caller's again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEPER_STORE", str(tmp_path / "store"))
    before = signal.getsignal(signal.SIGINT)
    results = sweeper.run(SPACE, overrides={"search.trials": 2})
    assert signal.getsignal(signal.SIGINT) == before
    assert capfd.readouterr() == ("", "")
    assert len(results.trials) == 2
    assert (tmp_path / "store").is_dir()
    assert results.model().training is False
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({**SPACE, "search": {**SPACE["search"], "trials": 2}}))
    assert sweeper.run(path).path == sweeper.run(SPACE, overrides=["search.trials=2"]).path == results.path


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, sweeper; sweeper.__version__; print(*(m for m in sys.modules if m.startswith('sweeper')))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["sweeper"]
    with pytest.raises(AttributeError, match="no attribute 'rnu'"):
        sweeper.rnu  # noqa: B018


def test_the_notebook_was_executed_and_shows_no_error() -> None:
    import nbformat

    notebook = nbformat.read(io.StringIO(NOTEBOOK.read_text()), as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(cell.outputs for cell in cells[:-1])
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_notebook_executes(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(io.StringIO(NOTEBOOK.read_text()), as_version=4)
    client = NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}})
    client.execute(env=dict(os.environ) | environment())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
