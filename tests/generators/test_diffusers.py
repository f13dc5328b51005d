"""The diffusers generator on pipelines with tiny random weights: what it draws, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from diffusers import (
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)
from pydantic import ValidationError

from sweeper.errors import InputError, RunFailed
from sweeper.generators import diffusers
from sweeper.generators._drawing import DiffusersGenerator

NAMES = ("zero", "one", "two", "three")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_unet(num_classes: int | None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(16, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=num_classes,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional pipeline of four classes whose scheduler is not the one that the class was written for."""
    path = tmp_path_factory.mktemp("pipelines") / "classes"
    ConsistencyModelPipeline(tiny_unet(4), DPMSolverMultistepScheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.dit(tmp_path_factory.mktemp("pipelines") / "dit")


@dataclass
class TextPipeline:
    """Stands in for a text-to-image pipeline: grey level from the prompt's length, blanked while `unsafe` lasts."""

    unsafe: int = 0
    calls: int = 0

    def __call__(
        self,
        prompt: Sequence[str],
        num_inference_steps: int,
        guidance_scale: float,
        height: int,
        width: int,
        generator: Sequence[torch.Generator],
        output_type: str,
    ) -> Any:
        self.calls += 1
        self.prompts, self.given = list(prompt), (num_inference_steps, guidance_scale, height, width, output_type)
        images = np.stack([np.full((height, width, 3), torch.rand(1, generator=one).item()) for one in generator])
        flags = [self.calls <= self.unsafe] + [False] * (len(prompt) - 1)
        images[flags] = 0
        return SimpleNamespace(images=images, nsfw_content_detected=flags)


TEXT = {"model": "fake", "prompt": "a photo of a {label}", "guidance": 2.0, "steps": 3, "size": 8, "batch_size": 4}


def test_an_image_does_not_depend_on_neighbours_order_or_sharding(folder: Path) -> None:
    generator = diffusers.build(diffusers.Config(model=str(folder), steps=4, batch_size=8), "cpu")
    labels, seeds = [i % 4 for i in range(19)], [2**62 + 7 * i for i in range(19)]
    whole = generator.generate(labels, NAMES, seeds)
    assert whole.shape == (19, 8, 8, 3)
    assert whole.dtype == np.uint8
    assert len(np.unique(whole.reshape(19, -1), axis=0)) == 19
    for parts in ([range(1)], [range(3), range(3, 19)], [range(0, 19, 2), range(1, 19, 2)], [range(18, -1, -1)]):
        for part in parts:
            drawn = generator.generate([labels[i] for i in part], NAMES, [seeds[i] for i in part])
            np.testing.assert_array_equal(drawn, whole[list(part)])


def test_batch_size_changes_rounding_at_most(folder: Path) -> None:
    drawn = [
        diffusers.build(diffusers.Config(model=str(folder), steps=4, batch_size=size), "cpu").generate(
            [0, 1, 2], NAMES, [1, 2, 3]
        )
        for size in (1, 16)
    ]
    assert np.abs(drawn[0].astype(int) - drawn[1]).max() <= 1


def test_label_and_seed_both_decide(folder: Path) -> None:
    generator = diffusers.build(diffusers.Config(model=str(folder), steps=2, batch_size=4), "cpu")
    images = generator.generate([0, 1, 0], NAMES, [5, 5, 6])
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_class_ids_say_which_class_of_the_pipeline(folder: Path) -> None:
    plain = diffusers.build(diffusers.Config(model=str(folder), steps=2, batch_size=4), "cpu")
    mapped = diffusers.build(diffusers.Config(model=str(folder), steps=2, batch_size=4, class_ids=(3, 1)), "cpu")
    np.testing.assert_array_equal(mapped.generate([0, 1], NAMES[:2], [8, 9]), plain.generate([3, 1], NAMES, [8, 9]))


def test_another_class_conditional_pipeline_and_its_guidance(dit_folder: Path) -> None:
    def drawn(guidance: float | None) -> np.ndarray:
        config = diffusers.Config(model=str(dit_folder), steps=2, batch_size=2, class_ids=(7, 9), guidance=guidance)
        return diffusers.build(config, "cpu").generate([0, 1], NAMES[:2], [3, 4])

    assert drawn(None).shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(drawn(None), drawn(4.0))  # the pipeline's own default
    assert not np.array_equal(drawn(4.0), drawn(1.0))


def test_prompts_name_the_class_in_words() -> None:
    pipeline = TextPipeline()
    generator = DiffusersGenerator(diffusers.Config(**TEXT), pipeline)
    images = generator.generate([1, 0], ["fire_truck", "cat"], [1, 2])
    assert pipeline.prompts == ["a photo of a cat", *["a photo of a fire truck"] * 3]
    assert pipeline.given == (3, 2.0, 8, 8, "np")
    assert images.shape == (2, 8, 8, 3)


def test_an_image_that_the_safety_checker_blanked_is_drawn_again() -> None:
    clean = DiffusersGenerator(diffusers.Config(**TEXT), TextPipeline()).generate([0, 1], NAMES, [1, 2])
    again = DiffusersGenerator(diffusers.Config(**TEXT), TextPipeline(unsafe=2)).generate([0, 1], NAMES, [1, 2])
    assert again[0].any()
    assert not np.array_equal(again[0], clean[0])
    np.testing.assert_array_equal(again[1], clean[1])
    with pytest.raises(RunFailed, match=r"safety checker of fake .*'a photo of a zero'"):
        DiffusersGenerator(diffusers.Config(**TEXT), TextPipeline(unsafe=99)).generate([0, 1], NAMES, [1, 2])


def test_what_the_pipeline_does_not_take_is_refused(folder: Path) -> None:
    for given, reason in (
        (
            {"guidance": 2.0},
            "guidance: 2.0 is given, but .*ConsistencyModelPipeline.* takes no guidance_scale; remove it",
        ),
        ({"prompt": "a {label}"}, "prompt: 'a {label}' is given, but .* takes no prompt"),
        ({"size": 16}, "size: 16 is given, but .* takes no height"),
    ):
        with pytest.raises(InputError, match=reason):
            diffusers.build(diffusers.Config(model=str(folder), **given), "cpu")
    with pytest.raises(InputError, match=r"draws from a text; give one"):
        DiffusersGenerator(diffusers.Config(**TEXT | {"prompt": None}), TextPipeline())
    with pytest.raises(InputError, match=r"class_ids: .* takes no class_labels"):
        DiffusersGenerator(diffusers.Config(**TEXT, class_ids=(1,)), TextPipeline())
    with pytest.raises(InputError, match=r"precision: fp16 needs a GPU"):
        diffusers.build(diffusers.Config(model=str(folder), precision="fp16"), "cpu")


def test_classes_that_do_not_match_are_refused(folder: Path) -> None:
    generator = diffusers.build(diffusers.Config(model=str(folder)), "cpu")
    with pytest.raises(InputError, match=r"draws 4 classes and the dataset has 2; say which ones with class_ids"):
        generator.generate([0], NAMES[:2], [1])
    for ids in ((0, 4), (0,)):
        generator = diffusers.build(diffusers.Config(model=str(folder), class_ids=ids), "cpu")
        with pytest.raises(InputError, match="class_ids: needs 2 numbers, one a class, each from 0 to 3"):
            generator.generate([0], NAMES[:2], [1])


def test_pipelines_without_classes_are_refused(tmp_path: Path) -> None:
    ConsistencyModelPipeline(tiny_unet(None), DPMSolverMultistepScheduler()).save_pretrained(tmp_path / "none")
    DDIMPipeline(tiny_unet(None), DDIMScheduler()).save_pretrained(tmp_path / "ddim")
    with pytest.raises(InputError, match="was trained without classes"):
        diffusers.build(diffusers.Config(model=str(tmp_path / "none")), "cpu")
    with pytest.raises(InputError, match="takes neither class_labels nor a prompt"):
        diffusers.build(diffusers.Config(model=str(tmp_path / "ddim")), "cpu")


def test_a_model_that_is_missing_is_named(tmp_path: Path) -> None:
    for model, reason in (
        (str(tmp_path / "nothing"), "does not exist"),
        (str(tmp_path), "has no model_index.json"),
        ("zoo:generatr", "did you mean 'zoo:generator'"),
    ):
        with pytest.raises(InputError, match=reason):
            diffusers.identity(diffusers.Config(model=model))
    (tmp_path / "model_index.json").write_text('{"_class_name": "NoSuchPipeline"}')
    with pytest.raises(InputError, match="can not be loaded by diffusers"):
        diffusers.build(diffusers.Config(model=str(tmp_path)), "cpu")


def test_a_hub_that_does_not_answer_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RunFailed, match="nobody/nothing could not be fetched from the hub"):
        diffusers.build(diffusers.Config(model="nobody/nothing", prompt="a {label}"), "cpu")


def test_a_prompt_without_the_class_is_refused() -> None:
    with pytest.raises(ValidationError, match="does not say where the class goes"):
        diffusers.Config(model="m", prompt="a photo of a cat")


def test_identity_is_what_decides_an_image(folder: Path, tmp_path: Path) -> None:
    base = diffusers.Config(model=str(folder))
    moved = tmp_path / "moved"
    moved.symlink_to(folder)
    for same in ({"batch_size": 3}, {"max_ratio": 9.0}, {"model": str(moved)}):
        assert diffusers.identity(base.model_copy(update=same)) == diffusers.identity(base)
    for other in ({"steps": 9}, {"guidance": 1.5}, {"class_ids": (0, 1, 2, 3)}, {"size": 16}, {"precision": "bf16"}):
        assert diffusers.identity(base.model_copy(update=other)) != diffusers.identity(base)


def test_nothing_is_printed_and_ray_is_not_imported(folder: Path, sd_folder: Path) -> None:
    code = (
        "import sys; from sweeper.generators import diffusers; import numpy; "
        f"g = diffusers.build(diffusers.Config(model={str(folder)!r}, steps=2, batch_size=2), 'cpu'); "
        "g.generate([0], ['a', 'b', 'c', 'd'], [1]); "
        f"c = diffusers.Config(model={str(sd_folder)!r}, prompt='a {{label}}', steps=2, strength=0.5, batch_size=1); "
        "diffusers.build(c, 'cpu').generate([0], ['a'], [1], [numpy.zeros((8, 8, 3), numpy.uint8)]); "
        "assert 'ray' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
