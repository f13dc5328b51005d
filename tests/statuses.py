"""A run in the middle of its search, as its monitor tells of it."""

from __future__ import annotations

from sweeper.status import (
    DONE,
    WAITING,
    WORKING,
    Cause,
    LaneStatus,
    Point,
    StageStatus,
    Status,
    Trials,
)

LABEL = "cnn > test_resnet, ce+kl+align_uniform +1x ddpm"
CAUSES = (
    Cause(text="OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB (train.py:123)", count=3),
    Cause(text="TrialFailed: loss is NaN (train.py:99)", count=1),
)
STAGES = (
    StageStatus(kind="start", state=DONE, seconds=5.1),
    StageStatus(
        kind="images", state=DONE, unit="images", done=440, total=440, rate=512.3, bytes=1_230_000, seconds=1.2
    ),
    StageStatus(
        kind="synthetic",
        state=DONE,
        unit="images",
        done=12_000,
        total=12_000,
        rate=20.1,
        bytes=43_100_000,
        seconds=600,
        spent_s=590,
        forecast_s=612,
    ),
    StageStatus(
        kind="search",
        state=WORKING,
        unit="trials",
        done=12,
        total=24,
        rate=0.2,
        seconds=66,
        seconds_left=130,
        spent_s=120,
        forecast_s=255,
    ),
    StageStatus(kind="finalists", state=WAITING, forecast_s=100),
)
POINTS = tuple(
    Point(hours=seconds / 3600, accuracy=accuracy, is_on_front=is_on_front)
    for seconds, accuracy, is_on_front in [
        (1.2, 0.3, True),
        (2.0, 0.6, True),
        (2.5, 0.8, True),
        (6.0, 0.9, True),
        (11.0, 0.94, True),
        (3.0, 0.5, False),
        (7.0, 0.7, False),
    ]
)


def busy(num_lanes: int, label: str = LABEL) -> Status:
    lanes = tuple(
        LaneStatus(lane=n, job=f"trial {n + 7}", label=label, epoch=3, epochs=40, accuracy=0.9, busy=0.97)
        for n in range(num_lanes)
    )
    return Status(
        label="smoke/0123456789",
        seconds=740,
        seconds_left=230,
        spent_s=775,
        forecast_s=1027,
        dollars=0.31,
        forecast_dollars=0.41,
        stages=STAGES,
        lanes=lanes,
        trials=Trials(done=12, total=24, stopped=3, failed=4, best=0.94, best_trial=7, causes=CAUSES),
        points=POINTS,
        hypervolume=0.5321,
    )
