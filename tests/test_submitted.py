"""What can be submitted and what can not, what is remembered of it, and how a job's log and end are read."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from ray_head import TINY
from run_samples import write_run

from sweeper import cli, cli_cluster, jobs, launcher, spacefile, submitted
from sweeper.errors import InputError
from sweeper.spacefile import SpaceFile
from sweeper.storage import Storage
from sweeper.submitted import Submission

AWS = Path(__file__).parents[1] / "cluster" / "aws.yaml"
STORE = "s3://bucket/sweeper"


def space(folder: Path, *overrides: str, **sections: Any) -> SpaceFile:
    (folder / "space.yaml").write_text(yaml.safe_dump({**TINY, **sections}, sort_keys=False))
    return spacefile.load(folder / "space.yaml", overrides)


# ---------------------------------------------------------------------------------------------- identity


def test_a_submissions_name_is_that_of_what_is_run_and_not_of_how(tmp_path: Path) -> None:
    name = submitted.name_of(space(tmp_path))
    assert name.startswith("tiny-")
    assert submitted.name_of(space(tmp_path, "resources.cpus_per_trial=2")) == name
    assert submitted.name_of(space(tmp_path, "search.trials=3")) != name


def test_what_is_sent_is_the_space_with_its_overrides(tmp_path: Path) -> None:
    read = space(tmp_path, "search.trials=7")
    mine = Submission(name=submitted.name_of(read), place="", store=str(tmp_path / "store"))
    submitted.send(mine, read, [])
    (tmp_path / "sent.yaml").write_bytes(Storage(mine.store).read(f"runs/{mine.name}/space.yaml") or b"")
    there = spacefile.load(tmp_path / "sent.yaml")
    assert there.config.search.trials == 7
    assert submitted.name_of(there) == mine.name


def test_earlier_runs_of_a_warm_start_are_sent_along(tmp_path: Path) -> None:
    earlier = write_run(tmp_path / "results" / "before" / "abc123")
    read = space(tmp_path, "search.warm_start=[abc]")
    mine = Submission(name=submitted.name_of(read), place="", store=str(tmp_path / "store"))
    submitted.send(mine, read, submitted.earlier(read, str(tmp_path / "results")))
    sent = Storage(mine.store).read(f"runs/{mine.name}/earlier/before/abc123/trials.parquet")
    assert sent == (earlier.path / "trials.parquet").read_bytes()
    with pytest.raises(InputError, match=r"search\.warm_start\.0: run: 'abc' is not there"):
        submitted.earlier(read, str(tmp_path / "elsewhere"))


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("store", "message"),
    [
        (".sweeper/store", "is a folder of this machine"),
        ("s3://KEY12345:SECRET/67890@bucket/sweeper", "holds credentials"),
    ],
)
def test_a_store_that_the_cluster_must_not_or_can_not_use_is_refused(tmp_path: Path, store: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        submitted.check(space(tmp_path), store)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "is_local"),
    [
        ({"kind": "image_folder", "root": "images"}, True),
        ({"kind": "image_folder", "root": "/mnt/images"}, False),
        ({"kind": "image_folder", "root": "s3://bucket/images"}, False),
        ({"kind": "parquet", "path": "b.parquet"}, True),
        ({"kind": "webdataset", "path": "train-{000..010}.tar"}, True),
        ({"kind": "huggingface", "name": "uoft-cs/cifar10"}, False),
        ({"kind": "huggingface", "name": "here"}, True),
    ],
)
def test_local_data_is_refused_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: dict[str, Any], is_local: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    read = space(tmp_path, dataset={**dataset, "image_size": 16})
    if is_local:
        with pytest.raises(InputError, match=r"dataset\..* is not on the cluster; .*space\.yaml:\d+\)"):
            submitted.check(read, STORE)
    else:
        submitted.check(read, STORE)


def test_local_weights_are_refused_and_names_of_models_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(b"")
    teachers = {name: {"kind": "timm", "model": "test_vit", "weights": name} for name in ("none", "mine.safetensors")}
    with pytest.raises(InputError) as caught:
        submitted.check(space(tmp_path, teachers={"a": teachers["none"], "b": teachers["mine.safetensors"]}), STORE)
    assert str(caught.value).startswith("teachers.b.weights: 'mine.safetensors'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(path.name for path in (AWS.parents[1] / "search_spaces").glob("*.yaml")))
def test_what_comes_with_sweeper_can_be_submitted(name: str) -> None:
    submitted.check(spacefile.load(AWS.parents[1] / "search_spaces" / name), STORE)


# ---------------------------------------------------------------------------------------------- found again


def test_a_submission_is_found_by_all_that_a_user_may_call_it(tmp_path: Path) -> None:
    results, store = str(tmp_path), Storage(str(tmp_path / "store"))
    one = Submission(name="mine-0123456789", place=str(AWS), store=store.uri)
    submitted.remember(results, one)
    submitted.remember(results, Submission(name="your-9876543210", place=str(AWS), store=store.uri))
    store.write("runs/mine-0123456789/label", b"mine/abcdef")
    for text in ("mine-0123456789", "mine", "0123", "mine/abcdef", "abc"):
        found = submitted.find(results, text)
        assert found is not None
        assert found.name == one.name, text
    assert submitted.find(results, "other") is None
    submitted.remember(results, Submission(name="mine-0124", place=str(AWS), store=store.uri))
    with pytest.raises(InputError, match="fits 2 submissions; name one: mine-0123456789, mine-0124"):
        submitted.find(results, "mine")


def test_a_damaged_note_names_its_file(tmp_path: Path) -> None:
    (tmp_path / ".submitted").mkdir()
    (tmp_path / ".submitted" / "x.json").write_text('{"name": 1}')
    with pytest.raises(InputError, match=r"x\.json: is damaged"):
        submitted.known(str(tmp_path))


# ---------------------------------------------------------------------------------------------- jobs


def test_each_line_of_a_log_is_shown_once_however_it_comes() -> None:
    shown: list[str] = []
    log = jobs.Log("Running it\n", shown.append)
    log.feed("of Ray\nRunning ")
    log.feed("it\none\ntw")
    assert shown == ["one"]
    log.again()  # the connection was lost
    log.feed("of Ray\nRunning it\none\n")
    assert shown == ["one"]
    log.feed("two\n\nthree")
    assert shown == ["one", "two", ""]
    log.end()
    log.end()
    assert shown == ["one", "two", "", "three"]


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [("SUCCEEDED", 0, 0), ("FAILED", 2, 2), ("FAILED", -9, 1), ("FAILED", None, 1), ("STOPPED", None, 130)],
)
def test_an_ended_job_gives_the_runs_exit_status(status: str, code: int | None, expected: int) -> None:
    assert jobs.exit_status(SimpleNamespace(status=status, driver_exit_code=code)) == expected


@pytest.mark.parametrize(
    ("job", "number"),
    [("sweeper-a-01-3", 3), ("sweeper-a-01", 0), ("sweeper-a-01-x", 0), ("sweeper-aa-01-3", 0), ("raysubmit_1", 0)],
)
def test_a_submissions_jobs_are_told_from_others(job: str, number: int) -> None:
    assert jobs.number_of(job, "a-01") == number


# ---------------------------------------------------------------------------------------------- what it costs


def test_who_brings_a_cluster_up_is_told_what_begins_to_cost(tmp_path: Path) -> None:
    said = launcher.costs(AWS)
    assert said is not None
    assert "its head, m7i.xlarge (no price in the file), is billed until `sweeper down" in said
    assert "up to 8 workers" in said
    config = yaml.safe_load(AWS.read_text())
    config["metadata"]["sweeper"]["head"]["price_per_hour"] = 0.25
    (tmp_path / "priced.yaml").write_text(yaml.safe_dump(config))
    assert "m7i.xlarge (0.25 dollars an hour)" in str(launcher.costs(tmp_path / "priced.yaml"))


def test_machines_of_ones_own_cost_nothing() -> None:
    assert launcher.costs(AWS.parent / "onprem.yaml") is None


@pytest.mark.parametrize(
    ("address", "is_told"),
    [
        ("http://10.0.0.7:8265", True),
        ("http://head:8265", True),
        ("https://head:8265", False),
        ("http://localhost:8265", False),
        ("http://127.0.0.1:8265", False),
        ("http://[::1]:8265", False),
    ],
)
def test_a_token_that_others_could_read_is_told_of(
    address: str, is_told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_cluster._place(None, address)
    assert ("reads Ray's token" in capsys.readouterr().err) == is_told


def test_nobody_is_made_to_pay_without_having_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(InputError, match=r"is not up\. It would cost\. It costs money: say so with --yes"):
        cli_cluster._desk("results").agree("x is not up. It would cost. Go on?")
    cli_cluster._desk("results", yes=True).agree("x is not up. It would cost. Go on?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit", "SPACE"], "needs CLUSTER.yaml and SPACE"),
        (["submit", "CLUSTER", "SPACE", "--address", "http://127.0.0.1:1"], "needs CLUSTER.yaml and SPACE"),
        (["submit", "nowhere.yaml", "SPACE", "--store", STORE], "nowhere.yaml: is no file"),
        (["submit", "SPACE", "--address", "auto", "--store", STORE], "'auto' is no address of a dashboard"),
        (["submit", "CLUSTER", "SPACE"], "--store: is missing"),
        (["submit", "CLUSTER", "WRONG", "--store", STORE], "'epoch' is not a setting of train"),
        (["attach", "any"], "'any' was not submitted from here"),
        (["down", "nowhere.yaml"], "nowhere.yaml: is no file"),
    ],
)
def test_wrong_input_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SWEEPER_STORE", raising=False)
    monkeypatch.setattr(launcher, "_COMMAND", ("/nowhere",))
    space(tmp_path)
    trial = {**TINY["trial"], "train": {"epoch": 2}}
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump({**TINY, "trial": trial}))
    files = {"SPACE": "space.yaml", "WRONG": "wrong.yaml", "CLUSTER": str(AWS)}
    done = CliRunner().invoke(cli.main, [files.get(word, word) for word in arguments])
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "results").exists()
