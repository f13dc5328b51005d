"""Trackers: what TensorBoard, MLflow and W&B are told of a run, once each, also when it is resumed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from broken_spaces import GOOD
from command_line import environment
from run_samples import final_rows

from sweeper import spacefile, tracking
from sweeper.config import SweepConfig
from sweeper.errors import InputError, SpaceError
from sweeper.ledger import Cost
from sweeper.results import RunFolder
from sweeper.tracking import Tracking
from sweeper.trial import TrialConfig

BLOCK = 32_768
KEY = "0123456789abcdef" * 2 + "01234567"  # 40 characters, as W&B's
TRIAL = TrialConfig.model_validate(
    {"teacher": "cnn", "student": {"model": "test_resnet"}, "loss": {"ce": 0.5, "kl": {"weight": 1}}}
)
CURVE = [[1, 0.25, 2.0, 0.5], [2, 0.5, 1.5, 1.0], [3, 0.75, float("nan"), 1.5]]
COST = Cost(adapt=1800.0, targets=0.0, synthetic=0.0, train=1.5)


def config_of(tmp_path: Path, track: Any) -> SweepConfig:
    tree = yaml.safe_load(GOOD.replace("1e-4, 1e-2", "0.0001, 0.01"))
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump({**tree, "track": track}, sort_keys=False))
    return spacefile.load(path).config


def report(trial: int, row: Sequence[float]) -> dict[str, Any]:
    names = ("epoch", "accuracy_val", "loss", "train_seconds")
    job = {"type": "report", "job": f"trial-{trial:05d}", "trial": trial, "config": TRIAL, "lane": 0}
    return {**job, **dict(zip(names, row, strict=True))}


def end(trial: int, state: str = "completed", error: str | None = None, **more: Any) -> dict[str, Any]:
    known = {"state": state, "error": error, "trial": trial, "config": TRIAL, "cost": COST, "accuracy_val": 0.75}
    return {"type": "end", "job": f"trial-{trial:05d}", "lane": 0, **known, **more}


class Run:
    """A run's folder, and sessions of it that end as they are told to."""

    def __init__(self, tmp_path: Path, track: Any) -> None:
        self.folder = RunFolder(tmp_path / "results" / "good" / "a1b2c3")
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.config = config_of(tmp_path, track)
        self.said: list[str] = []

    @contextlib.contextmanager
    def session(self) -> Iterator[Tracking]:
        with tracking.following(self.folder, self.config, lambda text, style: self.said.append(text)) as tracked:
            yield tracked

    def whole(self) -> None:
        """Two sessions: the first is killed in trial 1; the second gets its curve from its checkpoint, and ends."""
        with self.session() as tracked:
            for row in CURVE:
                tracked(report(0, row))
            tracked(end(0, curve=CURVE))
            tracked({"type": "lane", "lane": 0})
            tracked(report(1, CURVE[0]))
        with self.session() as tracked:
            tracked.earlier([_Ended(0)])
            tracked(report(1, CURVE[0]))
            tracked(report(1, CURVE[1]))
            tracked(end(1, "stopped", curve=CURVE[:2]))
            tracked(end(2, "failed", "loss is NaN at step 12"))
            self.folder.write_pareto(final_rows())
            tracked.front(self.folder)
        assert self.said == []


class _Ended:
    """A trial of the study with an outcome."""

    def __init__(self, number: int) -> None:
        self.number = number
        outcome = {"state": "completed", "error": None, "curve": CURVE, "cost": vars(COST)}
        self.user_attrs = {"config": TRIAL.model_dump(mode="json"), "outcome": outcome}


def test_tensorboard_has_every_epoch_once_and_the_hyperparameters(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, {"kind": "tensorboard"})
    run.whole()

    def read(name: str) -> Any:
        return EventAccumulator(str(run.folder.path / "tensorboard" / name)).Reload()

    found = {trial: read(f"trial-{trial:05d}") for trial in (0, 1, 2)}
    assert [(e.step, e.value) for e in found[0].Scalars("accuracy_val")] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert [e.step for e in found[0].Scalars("loss")] == [1, 2], "what is not finite is left out"
    assert [e.step for e in found[1].Scalars("accuracy_val")] == [1, 2]
    assert found[1].Scalars("gpu_hours")[0].value == pytest.approx(1801.5 / 3600)
    assert "accuracy_val" not in found[2].Tags()["scalars"]
    assert b"loss is NaN" in found[2].Tensors("error/text_summary")[0].tensor_proto.string_val[0]
    hparams = found[0].summary_metadata["_hparams_/session_start_info"].plugin_data.content
    assert b"student.model" in hparams
    assert b"test_resnet" in hparams
    assert b"accuracy_test" in read("front").Tensors("pareto/text_summary")[0].tensor_proto.string_val[0]


def runs_of(uri: str) -> dict[str, Any]:
    """Of MLflow: the runs of the experiment `good` by the trial that they name."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("good")
    found = client.search_runs([experiment.experiment_id])
    by_trial = {run.data.tags["sweeper.trial"]: run for run in found}
    assert len(by_trial) == len(found), "a run twice"
    return by_trial


def check_mlflow(uri: str) -> None:
    from mlflow import MlflowClient

    client, runs = MlflowClient(uri), runs_of(uri)
    assert set(runs) == {"all", "0", "1", "2"}
    whole = runs["all"]
    assert [runs[trial].info.status for trial in ("all", "0", "1", "2")] == ["FINISHED"] * 3 + ["FAILED"]
    assert [runs[trial].data.tags["sweeper.state"] for trial in ("0", "1", "2")] == ["completed", "stopped", "failed"]
    assert runs["2"].data.tags["sweeper.error"] == "loss is NaN at step 12"
    assert runs["0"].data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert runs["0"].data.params["student.model"] == "test_resnet"
    assert runs["0"].data.params["loss.kl.weight"] == "1.0"
    history = client.get_metric_history(runs["1"].info.run_id, "accuracy_val")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5)]
    assert runs["1"].data.metrics["gpu_hours"] == pytest.approx(1801.5 / 3600)
    assert whole.data.metrics["front.accuracy_test.rank-1"] == pytest.approx(final_rows()[0].accuracy_test)
    assert [file.path for file in client.list_artifacts(whole.info.run_id)] == ["pareto.csv"]


def test_mlflow_has_a_run_for_each_trial_below_that_of_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where artifacts go
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    Run(tmp_path, {"kind": "mlflow", "tracking_uri": uri}).whole()
    check_mlflow(uri)


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """MLflow's own server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{tmp_path}/files"]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen([*command, *store], stdout=log, stderr=log, env=environment(), start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None, (tmp_path / "server.log").read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait()


@pytest.mark.slow
def test_mlflows_own_server_is_told_of_a_run_and_keeps_its_table(mlflow_server: str, tmp_path: Path) -> None:
    Run(tmp_path, {"kind": "mlflow", "tracking_uri": mlflow_server}).whole()
    check_mlflow(mlflow_server)


@pytest.mark.slow
def test_a_sweep_is_followed_by_all_trackers(
    mlflow_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The smoke space from the command line, with the three of them."""
    tree = yaml.safe_load((Path(__file__).parents[1] / "search_spaces" / "smoke.yaml").read_text())
    track = {"tb": {"kind": "tensorboard"}, "wb": {"kind": "wandb"}}
    tree |= {"name": "good", "track": {**track, "ml": {"kind": "mlflow", "tracking_uri": mlflow_server}}}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(tree))
    done = subprocess.run(
        [sys.executable, "-m", "sweeper", "run", "space.yaml"],
        cwd=tmp_path,
        env={**environment(), "WANDB_MODE": "offline", "WANDB_API_KEY": KEY},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on without" not in done.stdout
    runs = runs_of(mlflow_server)
    assert set(runs) == {"all", "0", "1", "2", "3"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    (folder,) = (tmp_path / "results" / "good").iterdir()
    assert len(list((folder / "tensorboard").iterdir())) == 5
    assert len(list((folder / "wandb").glob("offline-run-*"))) == 5
    secrets = [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert secrets == []


def records_of(folder: Path) -> list[Any]:
    """What an offline run of W&B would send."""
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    data, found, parts, at = path.read_bytes(), [], b"", 7
    while at < len(data):  # LevelDB's log: in blocks, a header of crc (4), length (2) and type (1) before each part
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def test_wandb_has_a_run_for_each_trial_in_one_group_and_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = Run(tmp_path, {"kind": "wandb", "project": "sweeps"})
    run.whole()
    said: dict[str, list[Any]] = {}
    for folder in sorted((run.folder.path / "wandb").glob("offline-run-*")):
        records = records_of(folder)
        (head,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (head.project, head.run_group) == ("sweeps", "good/a1b2c3")
        said.setdefault(head.run_id, []).extend(records)
    assert sorted(said) == ["a1b2c3-00000", "a1b2c3-00001", "a1b2c3-00002", "a1b2c3-front"]

    def steps(run_id: str) -> list[int]:
        return [r.history.step.num for r in said[run_id] if r.WhichOneof("record_type") == "history"]

    assert steps("a1b2c3-00000") == [1, 2, 3]
    assert steps("a1b2c3-00001") == [1, 2], "over both sessions"
    config = {item.key or item.nested_key[0] for r in said["a1b2c3-00000"] for item in r.run.config.update}
    assert "student.model" in config
    files = [path for path in run.folder.path.rglob("*") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_wandb_without_an_account_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()  # it remembers what an earlier test's environment said
    run = Run(tmp_path, {"kind": "wandb"})
    with pytest.raises(InputError, match=r"track\.wandb: no account: `wandb login`"), run.session():
        pass


def test_a_tracker_that_is_not_installed_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sweeper.trackers import mlflow

    config = config_of(tmp_path, {"mine": {"kind": "mlflow"}})
    tracking.check(config)
    monkeypatch.setattr(mlflow, "PACKAGE", "no_such_package_anywhere")
    with pytest.raises(InputError, match=r"track\.mine: no_such_package_anywhere .* `pip install 'sweeper\[mlflow\]'`"):
        tracking.check(config)


def test_a_server_that_is_not_there_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = Run(tmp_path, {"kind": "mlflow", "tracking_uri": "http://127.0.0.1:9"})
    words = r"track\.mlflow: tracking_uri: http://127\.0\.0\.1:9 does not answer"
    with pytest.raises(InputError, match=words), run.session():
        pass


def test_a_tracker_that_fails_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, {"kind": "tensorboard"})
    (run.folder.path / "tensorboard").write_text("in the way")
    with run.session() as tracked:
        for row in CURVE:
            tracked(report(0, row))
        tracked(end(0, curve=CURVE))
    assert len(run.said) == 1
    assert run.said[0].startswith("track.tensorboard: ")
    assert run.said[0].endswith("; the run goes on without it")


def test_a_tracker_that_is_added_later_hears_of_the_trials_before_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, {"kind": "tensorboard"})
    with run.session() as tracked:
        tracked.earlier([_Ended(0)])
    with run.session() as tracked:
        tracked.earlier([_Ended(0)])
    found = EventAccumulator(str(run.folder.path / "tensorboard" / "trial-00000")).Reload()
    assert [e.step for e in found.Scalars("accuracy_val")] == [1, 2, 3]


def test_trackers_are_no_part_of_a_runs_identity(tmp_path: Path) -> None:
    without, with_one = config_of(tmp_path, {}), config_of(tmp_path, {"kind": "tensorboard"})
    assert spacefile.identity(with_one) == spacefile.identity(without)
    assert "track" not in spacefile.resolved(without)
    assert spacefile.resolved(with_one)["track"] == {"tensorboard": {"kind": "tensorboard"}}


@pytest.mark.parametrize(
    ("track", "words"),
    [
        ({"kind": "tensorbord"}, "did you mean 'tensorboard'"),
        ({"kind": "mlflow", "tracking_uri": "http://me:secret@host"}, "track.tracking_uri: holds a password"),
        ({"mine": {"kind": "wandb", "projct": "x"}}, "did you mean 'project'?"),
        ([{"kind": "wandb"}], "track: has to be a section"),
    ],
)
def test_what_is_wrong_with_a_tracker_is_said_as_of_any_section(tmp_path: Path, track: Any, words: str) -> None:
    with pytest.raises(SpaceError) as caught:
        config_of(tmp_path, track)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
