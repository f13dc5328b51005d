"""The embedded weights: small enough, as good as recorded, loaded by the ordinary parts, and of honest data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sweeper import zoo
from sweeper.datasets import digits
from sweeper.errors import InputError
from sweeper.fingerprint import folder_sha256
from sweeper.generators import diffusers
from sweeper.teachers import timm

FIGURES = json.loads((zoo.ROOT / "figures.json").read_text(encoding="utf-8"))
TEACHERS = ("cnn", "vit")
STUDENT_PARAMS = {"test_efficientnet": 101_766, "test_vit": 306_890, "test_resnet": 373_658}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def accuracy(name: str, split: str) -> float:
    config = digits.Config()
    index = digits.index(config, 0)
    rows = [i for i, part in enumerate(index.splits) if part == split]
    images = digits.decode(config, [index.sources[i] for i in rows])
    pixels = np.stack([np.asarray(image.resize((32, 32), 3)) for image in images])  # type: ignore[union-attr]
    teacher = timm.build(timm.Config(weights=f"zoo:{name}", adapt="none"), digits.CLASS_NAMES)
    with torch.no_grad():
        logits = teacher(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).logits_BK
    return float((logits.argmax(1).numpy() == index.labels[rows]).mean())


def test_all_weights_together_are_at_most_8_mb() -> None:
    weights = sum(
        path.stat().st_size for name in zoo.names() for path in (zoo.ROOT / name).rglob("*") if path.is_file()
    )
    assert weights <= 8_000_000


def test_the_record_is_of_these_weights() -> None:
    assert set(zoo.names()) == set(FIGURES) == {"cnn", "vit", "generator"}
    for name, figures in FIGURES.items():
        assert figures["folder_sha256"] == folder_sha256(zoo.ROOT / name)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_as_good_as_recorded(name: str) -> None:
    found = accuracy(name, "val")
    assert found == pytest.approx(FIGURES[name]["accuracy_val"], abs=0.005)
    assert found >= {"cnn": 0.99, "vit": 0.985}[name]


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_is_several_times_the_students_size(name: str) -> None:
    teacher = timm.build(timm.Config(weights=f"zoo:{name}"), digits.CLASS_NAMES)
    assert teacher.input_size == 32
    assert sum(parameter.numel() for parameter in teacher.parameters()) >= 2.5 * max(STUDENT_PARAMS.values())


def test_generated_digits_show_the_class_that_was_asked_for_and_are_new() -> None:
    generator = diffusers.build(
        diffusers.Config(model="zoo:generator", steps=FIGURES["generator"]["sampling_steps"]), "cpu"
    )
    labels = [i % 10 for i in range(200)]
    images = generator.generate(labels, digits.CLASS_NAMES, list(range(10**6, 10**6 + 200)))
    judge = timm.build(timm.Config(weights="zoo:cnn", adapt="none"), digits.CLASS_NAMES)
    enlarged = torch.nn.functional.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2).float(), 32, mode="bicubic")
    with torch.no_grad():
        read = judge(enlarged.clamp(0, 255) / 255).logits_BK.argmax(1).numpy()
    assert (read == labels).mean() >= 0.95
    pool, _ = digits.foundation()
    flat, known = (part[..., 0].reshape(len(part), -1).astype(float) for part in (images, pool))
    distances = np.sqrt(((flat[:, None] - known[None]) ** 2).mean(-1)).min(1)
    assert (distances > 4).mean() >= 0.95  # grey levels of 255, root mean square: not copies


def test_names_and_their_mistakes() -> None:
    assert zoo.resolve("zoo:cnn") == zoo.resolve("cnn") == zoo.ROOT / "cnn"
    assert (zoo.resolve("zoo:generator") / "model_index.json").is_file()
    for name in ("zoo:cmn", "zoo:", "zoo:../zoo/cnn"):
        with pytest.raises(InputError, match="is not in the zoo"):
            zoo.resolve(name)


def test_a_copy_of_the_zoo_is_the_same_teacher(tmp_path: Path) -> None:
    for path in (zoo.ROOT / "cnn").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert timm.identity(timm.Config(weights=str(tmp_path))) == timm.identity(timm.Config(weights="zoo:cnn"))
