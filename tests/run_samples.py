"""A small made-up run for the tests of what is written and shown: 24 trials, three finalists, three arms."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from PIL import Image

from sweeper.ledger import Charge, Cost
from sweeper.results import FinalRow, RunFolder, TrialRow

TEACHERS = ("cnn", "vit", "none")
STUDENTS = ("test_resnet", "test_vit", "mobilenetv2_035")
LOSSES = ("ce", "ce+kl", "ce+kl+align_uniform", "ce+kl+info_nce")
NASTY = "<img src=x onerror=alert(1)>"


def cost(train: float, *, taught: bool = True, synthetic: float = 0.0) -> Cost:
    return Cost(adapt=1.3 * taught, targets=2.7 * taught, synthetic=synthetic, train=train)


def trial_row(trial: int, **changes: Any) -> TrialRow:
    draw = random.Random(trial)
    teacher = TEACHERS[trial % 3]
    values: dict[str, Any] = {
        "trial": trial,
        "teacher": teacher,
        "student": STUDENTS[trial % 2],
        "loss": "ce" if teacher == "none" else LOSSES[1 + trial % 3],
        "synthetic_ratio": (0.0, 0.5, 1.0, 2.0)[trial % 4],
        "epochs": 40,
        "accuracy_val": 0.82 + 0.12 * draw.random() + 0.03 * (teacher != "none"),
        "cost": cost(2 + 9 * draw.random(), taught=teacher != "none", synthetic=3.1 * (trial % 4)),
        "gpu_hours_amortized": 0.001,
        "params": 338_964,
        "device": "cpu",
        "state": "completed" if trial % 5 else "stopped",
        "config": {"teacher": teacher, "train": {"lr": 1e-3 * (1 + trial % 7), "epochs": 40}},
    }
    return TrialRow(**{**values, **changes})


def trial_rows() -> list[TrialRow]:
    failed = trial_row(23, state="failed", error="loss is NaN at step 12", accuracy_val=float("nan"))
    return [trial_row(0, accuracy_val=0.11), *(trial_row(number) for number in range(1, 23)), failed]


def final_row(rank: int, **changes: Any) -> FinalRow:
    values: dict[str, Any] = {
        "rank": rank,
        "trial": 3 * rank,
        "teacher": TEACHERS[(rank - 1) % 3],
        "student": STUDENTS[(rank - 1) % 3],
        "loss": ("ce+kl+align_uniform", "ce+kl", "ce")[(rank - 1) % 3],
        "synthetic_ratio": (2.0, 0.5, 0.0)[(rank - 1) % 3],
        "epochs": 40,
        "accuracy_val": 0.983 - 0.02 * rank,
        "accuracy_test": 0.979 - 0.021 * rank,
        "accuracy_test_std": 0.0041,
        "seeds": 3,
        "cost": cost(12.0 / rank, taught=rank < 3, synthetic=max(0.0, 9.0 - 3 * rank)),
        "gpu_hours_amortized": 0.0021,
        "params": 338_964,
        "device": "cpu",
    }
    return FinalRow(**{**values, **changes})


def final_rows() -> list[FinalRow]:
    return [final_row(rank) for rank in (1, 2, 3)]


def ablation_rows() -> list[FinalRow]:
    same: dict[str, Any] = {"student": "test_resnet", "trial": 3}
    return [
        final_row(1, **same, role="distilled+synthetic", accuracy_test=0.977),
        final_row(2, **same, role="distilled", accuracy_test=0.951),
        final_row(3, **same, role="scratch", accuracy_test=0.902, teacher="none", loss="ce"),
    ]


def charges() -> list[Charge]:
    made = [
        ("images", "a1", 0.8, 1797),
        ("adapt", "b2", 1.3, 1000),
        ("targets", "c3", 2.7, 8000),
        ("train", "0", 9.4, 600),
    ]
    return [Charge(stage=stage, key=key, seconds=s, device="cpu", units=n) for stage, key, s, n in made]  # type: ignore[arg-type]


def seed_records() -> list[dict[str, Any]]:
    """Three retrainings of each row of `final_rows`, around its figures."""
    found = []
    for row in (final_row.record() for final_row in final_rows()):
        for seed, off in ((1, -0.004), (2, 0.0), (3, 0.004)):
            same = {name: row[name] for name in ("rank", "trial", "epochs", "gpu_hours", "gpu_hours_train")}
            scores = {"accuracy_val": row["accuracy_val"] + off, "accuracy_test": row["accuracy_test"] + off}
            found.append({"role": "front", "seed": seed, **same, **scores})
    return found


def confusion_records(names: tuple[str, ...] = ("cat", NASTY, "dog")) -> list[dict[str, Any]]:
    """Of row 1: each class is taken for the next one now and then, the last one most often."""
    found = []
    for number, name in enumerate(names):
        wrong = 2 * number
        for taken, images in ((name, 20 - wrong), (names[(number + 1) % len(names)], wrong)):
            if images:
                found.append({"rank": 1, "model": "3", "truth": name, "taken_for": taken, "images": images})
    return found


def teacher_records() -> list[dict[str, Any]]:
    costs = {"seconds_adapt": 1.3, "seconds_targets": 2.7, "device": "cpu"}
    reads = {"views_cached": 8000, "views_read": 80_000}
    return [
        {"teacher": name, "model": NASTY, "adapt": "linear_probe", "accuracy_val": 0.97, **costs, **reads}
        for name in ("cnn", "vit")
    ]


def curve_records() -> list[dict[str, Any]]:
    """Five epochs of every trial that came so far."""
    found = []
    for row in (trial.record() for trial in trial_rows()):
        for epoch in range(1, 6) if row["accuracy_val"] is not None else ():
            reached = {"accuracy_val": row["accuracy_val"] * (1 - 0.5**epoch), "loss": 1.0 / epoch}
            cost = {"train_seconds": 0.2 * epoch, "gpu_hours": row["gpu_hours"] * (0.5 + 0.1 * epoch)}
            found.append({"trial": row["trial"], "epoch": epoch, **reached, **cost, "on_front": False})
    return found


FORECAST: dict[str, Any] = {
    "missing": [],
    "forecast": {
        stage: {"seconds": s, "wall_s": s} for stage, s in (("targets", 3.0), ("search", 8.0), ("total", 11.0))
    },
    "fact": {stage: {"seconds": s, "wall_s": s} for stage, s in (("targets", 2.7), ("search", 9.4), ("total", 12.1))},
}


def write_full_run(path: Path, *, name: str = "tiny") -> RunFolder:
    """`write_run` with what a page shows besides: curves, seeds, rungs, mistakes, teachers, forecast, sheets."""
    run = _written(path, name)
    run.write_curves(curve_records())
    run.write_finalists(seed_records())
    run.write_hypervolume(
        [{"seconds": s, "hypervolume": h} for s, h in ((4.0, 0.0), (9.0, 0.3), (30.0, 0.52), (60.0, 0.52))]
    )
    run.write_rungs([{"rung": n, "epochs": e, "trials": 18, "spearman": 0.9} for n, e in ((1, 1), (2, 3))])
    run.write_confusion(confusion_records())
    run.write_teachers(teacher_records())
    run.write_forecast(FORECAST)
    for sheet in ("real", f"synthetic-{re.sub('[^a-z]', '_', NASTY)}"):
        Image.new("RGB", (40, 20), "teal").save(path / f"{sheet}.png")
    return _closed(run)


def write_run(path: Path, *, name: str = "tiny") -> RunFolder:
    """All files of a finished run."""
    return _closed(_written(path, name))


def _closed(run: RunFolder) -> RunFolder:
    run.write_report()
    run.finish({"seconds": 12.5})
    return run


def _written(path: Path, name: str) -> RunFolder:
    run = RunFolder(path)
    run.write_space({"name": name, "seed": 0, "trial": {"teacher": {"choice": list(TEACHERS)}}})
    run.write_trials(trial_rows())
    run.write_curves([{"trial": 0, "epoch": 1, "accuracy_val": 0.5, "loss": 1.2, "train_seconds": 0.1, "lr": 0.01}])
    run.write_ledger(charges())
    run.write_pareto(final_rows())
    run.write_ablation(ablation_rows())
    run.write_environment(device="cpu", facts={"dataset": "40 images", "classes": ["cat", NASTY]})
    return run
