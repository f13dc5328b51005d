"""optuna-dashboard reads a run's journal as it stands, while the run writes to it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from test_study import outcome, study

from sweeper.study import STUDY_NAME


def get(journal: Path, url: str) -> Any:
    """What the dashboard's own application answers, given the journal's path as on its command line."""
    from optuna_dashboard import wsgi
    from optuna_dashboard._storage_url import get_storage

    said: list[str] = []
    request = {"REQUEST_METHOD": "GET", "PATH_INFO": url, "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO()}
    request |= {"SERVER_NAME": "here", "SERVER_PORT": "80", "wsgi.url_scheme": "http"}
    body = b"".join(wsgi(get_storage(str(journal)))(request, lambda status, *rest: said.append(status)))
    assert said == ["200 OK"], body
    return json.loads(body)


@pytest.mark.filterwarnings("ignore")
def test_the_dashboard_shows_the_study_with_its_objectives_by_name(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    book = study(journal)
    for accuracy, state in ((0.5, "completed"), (0.7, "completed"), (0.6, "stopped")):
        number, _ = book.ask()
        book.record(number, outcome(accuracy, state))
    book.ask()  # still running
    (summary,) = get(journal, "/api/studies")["study_summaries"]
    assert summary["study_name"] == STUDY_NAME
    assert summary["directions"] == ["maximize", "minimize"]
    shown = get(journal, f"/api/studies/{summary['study_id']}")
    assert shown["objective_names"] == ["accuracy", "gpu_hours"]
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 3 + ["Running"]
    assert [trial["values"][0] for trial in shown["trials"][:3]] == [0.5, 0.7, 0.6]
    names = {param["name"] for param in shown["trials"][0]["params"]}
    assert {"teacher", "student.model", "train.lr"} <= names


def test_a_study_that_is_taken_up_again_names_its_objectives_once(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    study(journal)
    study(journal)
    assert journal.read_bytes().count(b"metric_names") == 1
