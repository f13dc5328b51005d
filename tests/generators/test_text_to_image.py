"""Real text-to-image and image-to-image pipelines with tiny random weights: Stable Diffusion's, and its XL's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from sweeper.errors import InputError
from sweeper.generators import _prompts, diffusers
from sweeper.generators._drawing import DiffusersGenerator

NAMES = ("001.Black_footed_Albatross", "fire_truck")
PROMPT = "a photo of a {label}"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def xl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.stable_diffusion_xl(tmp_path_factory.mktemp("pipelines") / "xl")


@pytest.fixture(params=["sd", "xl"])
def folder(request: pytest.FixtureRequest, sd_folder: Path, xl_folder: Path) -> Path:
    return sd_folder if request.param == "sd" else xl_folder


def config(folder: Path, **changes: Any) -> diffusers.Config:
    return diffusers.Config(**{"model": str(folder), "prompt": PROMPT, "steps": 2, "batch_size": 3, **changes})


def built(folder: Path, **changes: Any) -> DiffusersGenerator:
    return diffusers.build(config(folder, **changes), "cpu")


def drawn(folder: Path, starts: Sequence[np.ndarray] | None = None, **changes: Any) -> np.ndarray:
    return built(folder, **changes).generate([0, 1], NAMES, [5, 6], starts)


def starts(*greys: int) -> list[np.ndarray]:
    return [np.full((6, 6, 3), grey, dtype=np.uint8) for grey in greys]


def prompts_of(generator: DiffusersGenerator, monkeypatch: pytest.MonkeyPatch, count: int = 20) -> list[list[str]]:
    """What the pipeline is asked for, by batch; the pipeline runs."""
    asked: list[list[str]] = []
    real = generator.pipeline.encode_prompt

    def heard(*args: Any, **more: Any) -> Any:
        asked.append(more["prompt"] if "prompt" in more else args[0])
        return real(*args, **more)

    monkeypatch.setattr(generator.pipeline, "encode_prompt", heard)
    generator.generate([i % 2 for i in range(count)], NAMES, list(range(count)))
    return asked


def test_an_image_does_not_depend_on_neighbours_order_or_sharding(folder: Path) -> None:
    generator = built(folder)
    labels, seeds = [0, 1, 1, 0, 1], [2**62, 7, 8, 9, 10]
    whole = generator.generate(labels, NAMES, seeds)
    assert whole.shape == (5, tiny_pipelines.SIDE, tiny_pipelines.SIDE, 3)
    assert len(np.unique(whole.reshape(5, -1), axis=0)) == 5
    for part in ([4], [3, 1], [4, 3, 2, 1, 0]):
        again = generator.generate([labels[i] for i in part], NAMES, [seeds[i] for i in part])
        np.testing.assert_array_equal(again, whole[part])


def test_class_seed_guidance_and_negative_prompt_all_decide(folder: Path) -> None:
    generator = built(folder, guidance=5.0)
    plain = generator.generate([0, 1, 0], NAMES, [5, 5, 6])
    assert len(np.unique(plain.reshape(3, -1), axis=0)) == 3
    for other in (built(folder, guidance=1.0), built(folder, guidance=5.0, negative_prompt="blurry")):
        assert not np.array_equal(other.generate([0, 1, 0], NAMES, [5, 5, 6]), plain)


@pytest.mark.parametrize("scheduler", ["EulerDiscrete", "EulerAncestralDiscrete", "DPMSolverMultistep", "DDIM", "LCM"])
def test_a_scheduler_is_named_without_its_ending_and_keeps_the_models_noise(sd_folder: Path, scheduler: str) -> None:
    generator = built(sd_folder, scheduler=scheduler)
    found = generator.pipeline.scheduler
    assert type(found).__name__ == f"{scheduler}Scheduler"
    assert found.config.beta_schedule == "scaled_linear"  # the pipeline's own, and no scheduler's default
    images = generator.generate([0, 1], NAMES, [5, 6])
    np.testing.assert_array_equal(generator.generate([1], NAMES, [6])[0], images[1])
    assert not np.array_equal(images, drawn(sd_folder))


def test_one_step_without_guidance_as_turbo_models_are_drawn(folder: Path) -> None:
    calls = 0
    generator = built(folder, steps=1, guidance=0.0, scheduler="EulerAncestralDiscrete")

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    generator.pipeline.unet.register_forward_hook(count)
    assert generator.generate([0, 1, 0], NAMES, [1, 2, 3]).std() > 0
    assert calls == 1


def test_a_scheduler_that_does_not_exist_or_fit_is_refused(sd_folder: Path) -> None:
    with pytest.raises(InputError, match="'EulerDiscret' is none of diffusers'; did you mean 'EulerDiscrete'"):
        diffusers.identity(config(sd_folder, scheduler="EulerDiscret"))
    with pytest.raises(InputError, match=r"'FlowMatchEulerDiscrete' does not suit .* \(its own is PNDMScheduler\)"):
        built(sd_folder, scheduler="FlowMatchEulerDiscrete")


def test_bf16_is_the_same_image_but_for_its_rounding(folder: Path) -> None:
    whole, half = drawn(folder), drawn(folder, precision="bf16")
    assert not np.array_equal(whole, half)
    assert np.abs(whole.astype(int) - half).mean() < 8
    assert not np.array_equal(drawn(folder, precision="bf16")[0], half[1])


def test_size_is_the_side_of_what_is_drawn(folder: Path) -> None:
    assert drawn(folder, size=16).shape == (2, 16, 16, 3)
    assert drawn(folder, starts(0, 255), size=16, strength=0.5).shape == (2, 16, 16, 3)


def test_from_an_image_the_strength_says_how_far(folder: Path) -> None:
    """The same noise from a dark and from a light start: the nearer to them, the less strength there is."""
    apart = {}
    for strength in (0.2, 0.6, 1.0):
        dark, light = (drawn(folder, starts(g, g), steps=10, strength=strength)[0].astype(int) for g in (0, 255))
        apart[strength] = np.abs(dark - light).mean()
    assert apart[0.2] > apart[0.6] > apart[1.0]


def test_from_images_an_image_does_not_depend_on_its_neighbours(folder: Path) -> None:
    generator = built(folder, steps=4, strength=0.5)
    begun, labels, seeds = starts(0, 80, 160, 240), [0, 1, 1, 0], [1, 2, 3, 4]
    whole = generator.generate(labels, NAMES, seeds, begun)
    for part in ([3], [2, 0], [3, 2, 1, 0]):
        of = generator.generate([labels[i] for i in part], NAMES, [seeds[i] for i in part], [begun[i] for i in part])
        np.testing.assert_array_equal(of, whole[part])


def test_a_strength_needs_an_image_and_a_pipeline_that_takes_one(
    sd_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(ValueError, match="one start an image exactly where a strength is given"):
        drawn(sd_folder, strength=0.5)
    with pytest.raises(ValueError, match="one start an image exactly where a strength is given"):
        drawn(sd_folder, starts(1, 2))
    folder = tiny_pipelines.dit(tmp_path_factory.mktemp("pipelines") / "dit")
    with pytest.raises(InputError, match=r"no image-to-image form of .* \(DiTPipeline\); remove it"):
        diffusers.build(diffusers.Config(model=str(folder), strength=0.5), "cpu")


def test_a_folder_that_begins_from_images_says_that_it_needs_a_strength(sd_folder: Path, tmp_path: Path) -> None:
    built(sd_folder, strength=0.5).pipeline.save_pretrained(tmp_path / "i2i")
    with pytest.raises(InputError, match=r"strength: .*StableDiffusionImg2ImgPipeline\) begins from an image"):
        built(tmp_path / "i2i")
    same = drawn(tmp_path / "i2i", starts(0, 9), strength=0.5)
    np.testing.assert_array_equal(same, drawn(sd_folder, starts(0, 9), strength=0.5))


def test_each_image_gets_one_of_several_templates_by_its_seed(sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    templates = ["a photo of a {label}", "a drawing of a {label}", "{label}, close-up"]
    generator = built(sd_folder, prompt=templates, class_prompts={"fire_truck": "a red lorry"}, steps=1, batch_size=20)
    (prompts,) = prompts_of(generator, monkeypatch)
    assert set(prompts[::2]) == {template.replace("{label}", "Black footed Albatross") for template in templates}
    assert set(prompts[1::2]) == {"a red lorry"}
    assert prompts[0] == _prompts.text(templates, {}, NAMES[0], 0)


def test_the_templates_are_drawn_evenly() -> None:
    said = [_prompts.text(["{label} 0", "{label} 1", "{label} 2"], {}, "x", seed) for seed in range(3000)]
    counts = [said.count(f"x {number}") for number in range(3)]
    assert min(counts) > 900


def test_a_list_of_one_template_is_that_template(sd_folder: Path) -> None:
    assert diffusers.identity(config(sd_folder, prompt=[PROMPT])) == diffusers.identity(config(sd_folder))


def test_settings_that_are_not_used_leave_the_identity_as_it_was(sd_folder: Path) -> None:
    """Its keys are those of the first version, so that what is in a store stays there."""
    found = diffusers.identity(config(sd_folder))
    first = {"kind", "model", "prompt", "class_ids", "guidance", "steps", "size", "precision", "revision"}
    assert set(found) == first
    assert diffusers.identity(config(sd_folder, compile=True)) == found
    judged = config(sd_folder, filter={"kind": "agreement", "teacher": "cnn"})
    assert diffusers.identity(judged) == found
    for other in (
        {"strength": 0.5},
        {"scheduler": "LCM"},
        {"negative_prompt": "blurry"},
        {"prompt": [PROMPT, "{label}"]},
        {"class_prompts": {"fire_truck": "a red lorry"}},
    ):
        assert diffusers.identity(config(sd_folder, **other)) != found


def test_names_that_are_said_in_a_new_way_are_told_apart(sd_folder: Path) -> None:
    """A name that only loses its underscores is said as ever, and the key of its images stays."""
    assert diffusers.wording(config(sd_folder), ["fire_truck", "cat"]) == {}
    found = diffusers.wording(config(sd_folder), NAMES)
    assert found == {"wording": {NAMES[0]: "Black footed Albatross"}}
    own = config(sd_folder, class_prompts={NAMES[0]: "an albatross"})
    assert diffusers.wording(own, NAMES) == {}
    with pytest.raises(
        InputError, match="class_prompts: 'fire_truk' is not a class of the dataset; did you mean 'fire_"
    ):
        diffusers.wording(config(sd_folder, class_prompts={"fire_truk": "x"}), NAMES)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"prompt": []}, "needs at least one template"),
        ({"prompt": ["a {label}", "a cat"]}, "'a cat' does not say where the class goes"),
        ({"prompt": None, "class_prompts": {"cat": "a cat"}}, "needs a prompt for the other classes"),
        ({"strength": 0.2, "steps": 4}, "0.2 of 4 steps is none at all; raise steps to 5"),
        ({"strength": 0.0}, "greater than 0"),
        ({"strength": 1.1}, "less than or equal to 1"),
    ],
)
def test_settings_that_make_no_image_are_refused(sd_folder: Path, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        config(sd_folder, **given)


@pytest.mark.parametrize("given", [{}, {"strength": 0.6, "steps": 5}, {"steps": 1, "guidance": 0.0}, {"size": 16}])
def test_the_operations_of_an_image_are_those_that_torch_counts(folder: Path, given: dict[str, Any]) -> None:
    """While the pipeline runs, without its text encoders; the scheduler asks the denoiser once a step."""
    one = config(folder, batch_size=1, scheduler="DDIM", **given)
    generator = diffusers.build(one, "cpu")
    with FlopCounterMode(display=False) as whole:
        generator.generate([0], NAMES, [1], starts(9) if one.strength else None)
    with torch.no_grad(), FlopCounterMode(display=False) as text:
        guided = generator.pipeline.do_classifier_free_guidance
        generator.pipeline.encode_prompt(
            prompt=["a photo"], device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guided
        )
    expected = whole.get_total_flops() - text.get_total_flops()
    assert diffusers.flops_an_image(one, NAMES) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_on_a_gpu_it_is_the_same_image_compiled_or_not(folder: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    there = [
        diffusers.build(config(folder, precision=precision, compile=way), "cuda").generate([0, 1], NAMES, [5, 6])
        for way in (False, True)
    ]
    assert np.abs(there[0].astype(int) - there[1]).mean() < 8
    assert np.abs(there[0].astype(int) - drawn(folder)).mean() < 8
