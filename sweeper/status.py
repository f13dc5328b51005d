"""What a run does at one moment: kept by its driver (`monitor`), drawn in its terminal (`screen`), read by others.

    results/<name>/<run id>/status.json      the last one, replaced about once a second while a driver works

It says what is shown and no more: nothing goes on from it. Figures are finite, and texts free of secrets and of control
characters, when they come in (`shown`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from sweeper.errors import InputError
from sweeper.files import write_atomically
from sweeper.redact import redacted
from sweeper.tables import plain

FILE = "status.json"
EVERY_S = 1.0
RUNNING, FINISHED, INTERRUPTED, FAILED = "running", "finished", "interrupted", "failed"
WAITING, WORKING, DONE, LEFT = "waiting", "working", "done", "left"  # of a stage
MAX_TEXT = 400


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """All of one kind: images of the task and of pools, say.

    Attributes:
        state: waiting, working, done, or left before its end.
        done, total: in `unit`s; no total where nobody knows it.
        rate: units a second, of late while it works and of all its time afterwards.
        bytes: written into the store.
        seconds, seconds_left: on the clock.
        spent_s, forecast_s: device-seconds.
    """

    kind: str
    state: str
    unit: str = ""
    done: int = 0
    total: int | None = None
    rate: float | None = None
    bytes: int = 0
    seconds: float = 0.0
    seconds_left: float | None = None
    spent_s: float = 0.0
    forecast_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class LaneStatus:
    """What a lane trains; `job` is empty while it waits, and `label` then may say for what.

    Attributes:
        busy: the share of its time that it has trained, in [0, 1].
    """

    lane: int
    job: str = ""
    label: str = "starting"
    epoch: int = 0
    epochs: int = 0
    accuracy: float | None = None
    busy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Point:
    """A candidate: its accuracy on validation, its cost alone in device-hours, and whether it is on the front."""

    hours: float
    accuracy: float
    is_on_front: bool


@dataclass(frozen=True, kw_only=True)
class Cause:
    """Why trials failed: what the first of them said, and how many said alike."""

    text: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Trials:
    """The score of the search; `best` is the accuracy of trial `best_trial` on validation."""

    done: int = 0
    total: int | None = None
    stopped: int = 0
    failed: int = 0
    best: float | None = None
    best_trial: int | None = None
    causes: tuple[Cause, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Status:
    """A run at one moment.

    Attributes:
        label: `name/run id`.
        state: running, finished, interrupted or failed, the latter with its `reason`.
        device: of the trainings.
        seconds, seconds_left: on the clock, of this session.
        spent_s, forecast_s: device-seconds; dollars and forecast_dollars: where the devices' prices are known.
        trials: None before the search.
        points: the front, and some of what it beats.
        hypervolume: as in `progress`, of what is there so far.
        lines: the last ones that the run printed; `num_lines` counts all.
    """

    label: str = ""
    state: str = RUNNING
    reason: str = ""
    device: str = "cpu"
    seconds: float = 0.0
    seconds_left: float | None = None
    spent_s: float = 0.0
    forecast_s: float | None = None
    dollars: float | None = None
    forecast_dollars: float | None = None
    stages: tuple[StageStatus, ...] = ()
    lanes: tuple[LaneStatus, ...] = ()
    trials: Trials | None = None
    points: tuple[Point, ...] = ()
    hypervolume: float | None = None
    lines: tuple[str, ...] = ()
    num_lines: int = 0


def shown(text: object) -> str:
    """A text of whatever origin as one line that may be shown: no secret, no control character, not without end."""
    line = " ".join(plain(redacted(str(text))).split())
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 3]}..."


def to_json(status: Status) -> bytes:
    return json.dumps(asdict(status), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")


def read(path: Path) -> Status | None:
    """The last status of a run; None where there is none.

    Raises:
        InputError: something else lies there.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: can not be read: {error.strerror}") from error
    return parsed(data, str(path))


def parsed(data: bytes, path: str) -> Status:
    """What `to_json` made. Fields of a later version are passed over.

    Raises:
        InputError: it is something else.
    """
    from pydantic import TypeAdapter

    try:
        return TypeAdapter(Status).validate_json(data)
    except ValueError as error:
        raise InputError(f"{path}: is damaged, or of another version of sweeper; remove it") from error


@contextmanager
def written(look: Callable[[], Status], path: Path) -> Iterator[None]:
    """Keep the file up to date while the block runs, and once more at its end.

    A disk that takes no more is the run's own affair, and says so there.
    """
    ended = threading.Event()

    def write() -> None:
        with suppress(OSError):
            write_atomically(path, to_json(look()), is_synced=False)

    def work() -> None:
        write()
        while not ended.wait(EVERY_S):
            write()

    thread = threading.Thread(target=work, daemon=True, name="sweeper-status")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        write()
