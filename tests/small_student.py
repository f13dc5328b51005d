"""A student that a few steps on the digits trained, as a run leaves it: its folder, its row, its images in a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from run_samples import cost, final_row, trial_row, write_run

from sweeper import evaluate
from sweeper import student as students
from sweeper.batches import ImageSplit, image_split
from sweeper.datasets import digits
from sweeper.ingest import ImageWorker
from sweeper.results import RunFolder
from sweeper.store import Store
from sweeper.student import Student
from sweeper.trial import StudentConfig, TrialConfig

SIZE = 16
DATASET = digits.Config(train_per_class=10, image_size=SIZE)
TRIAL: Mapping[str, Any] = {
    "teacher": "cnn",
    "student": {"model": "test_resnet"},
    "synthetic": {"source": "tiny", "ratio": 1},
    "loss": {"ce": 0.5, "kl": {"weight": 1.0}},
}
SPACE: Mapping[str, Any] = {
    "name": "small",
    "seed": 0,
    "dataset": DATASET.model_dump(mode="json"),
    "views": {"per_image": 3, "flip": False},
    "teachers": {"cnn": {"kind": "timm", "weights": "zoo:cnn"}, "vit": {"kind": "timm", "weights": "hub"}},
    "synthetic": {"tiny": {"kind": "diffusers", "model": "/home/somebody/pipelines/tiny", "steps": 5}},
}


@dataclass(frozen=True)
class Small:
    """A finished run of one row; `test` is what its accuracy was taken on."""

    run: RunFolder
    store: Store
    student: Student
    test: ImageSplit
    accuracy: float

    @property
    def arguments(self) -> tuple[str, ...]:
        """For `sweeper export`: where things are."""
        return ("--results", str(self.run.path.parents[1]), "--store", self.store.uri)


def make(folder: Path) -> Small:
    """Decode, train, evaluate and write down; no Ray."""
    store = Store(str(folder / "store"))
    splits = {name: image_split(part, SIZE) for name, part in images(store).items()}
    student = students.build(StudentConfig(model="test_resnet"), 10, SIZE, seed=0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    pixels, labels = splits["train"].images_BCHW.float().div_(255), splits["train"].labels_B
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(student(pixels).logits_BK, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    student.eval()
    accuracy = evaluate.accuracy(student, splits["test"])
    run = write_run(folder / "results" / "small" / "a1b2c3d4e5", name="small")
    run.write_space(SPACE)
    config = TrialConfig.model_validate(TRIAL).resolved().model_dump(mode="json")
    run.write_trials([trial_row(3, config=config)])
    known = {"student": "test_resnet", "params": student.num_parameters, "cost": cost(2.0, synthetic=3.0)}
    facts = {"images": "100 train, 200 val, 447 test", "unreadable": "private.png", "classes": "0, 1"}
    run.write_environment(device="cpu", facts=facts)
    row = final_row(1, **known, accuracy_test=accuracy, extra={"model": "3", "model_accuracy_test": accuracy})
    run.write_pareto([row, replace(row, rank=2, trial=9, extra={"model": "9"})])  # the second one's student is gone
    run.write_model("3", students.export(student, digits.CLASS_NAMES))
    return Small(run, store, student, splits["test"], accuracy)


def images(store: Store) -> dict[str, pa.Table]:
    """The images stage's own worker on all digits of the task, by split."""
    index = digits.index(DATASET, 0)
    columns = {"sample_id": index.sample_ids, "label": index.labels.astype(np.int32), "split": index.splits}
    rows = pa.table({"row": np.arange(len(index)), **columns, "source": index.sources})
    prefix = store.staging()
    ImageWorker(store=store, prefix=prefix, dataset=DATASET)(rows)
    spec = {"class_names": list(index.class_names), "image_size": SIZE}
    table = store.read_table(store.commit("a" * 64, "images", spec, prefix, rows=len(index)))
    return {split: table.filter(pa.compute.equal(table["split"], split)) for split in ("train", "val", "test")}
