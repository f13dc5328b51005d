"""A CLIP of open_clip: zero-shot from the names of the classes, without a label, or probed or fine-tuned.

Zero-shot (Radford et al. 2021, arXiv 2103.00020): a class is the mean of its prompts' text embeddings, and an image's
logits are its cosines with the classes times the model's own scale. The text tower is gone once that is computed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from sweeper.errors import InputError
from sweeper.fingerprint import file_sha256, folder_sha256
from sweeper.teachers import Adapt, ModelSettings
from sweeper.teachers import _open_clip_weights as read
from sweeper.teachers._open_clip_weights import FILES, HUB_ID, PLACEHOLDER, is_path, local_weights

if TYPE_CHECKING:
    from sweeper.teachers._open_clip_module import OpenClipTeacher

PROMPTS = ("a photo of a {label}",)
RANDOM_SEED = 0  # `weights: none` is the same teacher in every process


class Config(ModelSettings):
    """A teacher. `weights`: a tag (`laion2b_s34b_b79k`), `hf-hub:ORG/NAME`, a folder, a file or `none` (random).

    A folder is in open_clip's own format (open_clip_config.json, open_clip_model.safetensors) and is written with a
    slash, also where it lies beside the space file; what is none of the others is a tag. Folders and hub ids say their
    own `model`. `adapt: none` is zero-shot: `prompts` are templates with `{label}`, where a class's name stands in
    words.
    """

    kind: Literal["open_clip"] = "open_clip"
    model: str | None = None
    weights: str
    adapt: Adapt = "none"
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] = PROMPTS

    @field_validator("prompts")
    @classmethod
    def _say_where_the_class_goes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for prompt in value:
            if PLACEHOLDER not in prompt:
                raise ValueError(f"{prompt!r} does not say where the class goes: write {PLACEHOLDER} ({PROMPTS[0]!r})")
        return value

    @model_validator(mode="after")
    def _says_one_model(self) -> Config:
        says_its_own = self.weights.startswith(HUB_ID) or (is_path(self.weights) and not self.weights.endswith(FILES))
        if self.model is None and not says_its_own:
            raise ValueError(
                f"model: weights: {self.weights} needs the name of an open_clip model; only a folder or a hub id says "
                "its own"
            )
        if self.model is not None and says_its_own:
            raise ValueError(f"model: {self.weights} says its own; leave `model` out")
        if self.adapt != "none" and self.prompts != PROMPTS:
            raise ValueError(f"prompts: only adapt: none (zero-shot) reads them; given with adapt: {self.adapt}")
        return self


def identity(config: Config) -> dict[str, Any]:
    """What decides the outputs; a local folder or file counts by its contents, so that it may be moved.

    The names of the classes, of which a zero-shot classifier is made, are in the key of the images already.
    """
    path = local_weights(config)
    named = config.decisive()
    if path is None:
        return {**named, "weights": config.weights}
    if path.is_dir():
        return {**named, "weights": {"folder_sha256": folder_sha256(path)}}
    return {**named, "weights": {"file_sha256": file_sha256(path)}}


def check(config: Config) -> None:
    """Refuse a name or a tag that open_clip does not have; nothing is built and the hub is not asked.

    Raises:
        InputError: naming the nearest models, or the tags that there are.
    """
    if not config.weights.startswith(HUB_ID):
        read.model_config(read.name_of(config, local_weights(config)), config)


def build(config: Config, class_names: Sequence[str]) -> OpenClipTeacher:
    """The teacher, in eval mode on the CPU, without gradients; zero-shot if `adapt: none`, else without a classifier.

    Raises:
        InputError: no such model or weights, or texts can not be read.
        RunFailed: the hub did not deliver.
    """
    import torch

    path = local_weights(config)
    name = read.name_of(config, path)
    model_config = read.model_config(name, config)
    tokenizer = read.tokenizer(name, model_config["text_cfg"], path) if config.adapt == "none" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(RANDOM_SEED)
        model = read.create(config, name, model_config, path)
        teacher = _wrapped(model.visual, model.visual.preprocess_cfg, config)
        if tokenizer is not None:
            start = time.perf_counter()
            weight_KD = read.zero_shot(model, tokenizer, config.prompts, class_names)
            teacher.with_classifier(weight_KD, torch.zeros(len(weight_KD)))
            teacher.head_seconds = time.perf_counter() - start
    return teacher


def sketch(config: Config, class_names: Sequence[str]) -> OpenClipTeacher:
    """The image tower with its architecture's initial weights: no weight is read, of a hub id its config alone.

    For shapes and counts, on torch's meta device where it is built under one.
    """
    from open_clip.model import _build_vision_tower
    from open_clip.transform import PreprocessCfg

    found = read.model_config(read.name_of(config, local_weights(config)), config)
    vision = {**found["vision_cfg"], "timm_model_pretrained": False}
    if config.input_size is not None:
        vision["image_size"] = config.input_size
    visual = _build_vision_tower(found["embed_dim"], vision, found.get("quick_gelu", False))
    return _wrapped(visual, asdict(PreprocessCfg()), config)


def stand_in(config: Config, folder: Path, num_classes: int) -> Config:
    """For a rehearsal: a small random CLIP in place of the hub's; what is here stays itself."""
    if config.weights == read.RANDOM or local_weights(config) is not None:
        return config
    check(config)  # a name or a tag may be wrong
    read.write_small(folder)
    return config.model_copy(update={"model": None, "weights": str(folder.absolute())})


def flops_an_image(config: Config, class_names: Sequence[str]) -> float | None:
    """Operations of the forward of one image, from the architecture alone."""
    import torch

    from sweeper import flops

    return flops.forward_flops(
        lambda: sketch(config, class_names), lambda t: t(torch.empty(1, len(t.mean), t.input_size, t.input_size))
    )


def _wrapped(visual: Any, preprocessing: Mapping[str, Any], config: Config) -> OpenClipTeacher:
    from sweeper.teachers._open_clip_module import OpenClipTeacher

    size = visual.image_size
    side = config.input_size or int(size if isinstance(size, int) else size[-1])
    try:
        seen = {name: preprocessing[name] for name in ("mean", "std", "interpolation")}
        return OpenClipTeacher(visual, **seen, input_size=side)
    except (AssertionError, RuntimeError) as error:
        raise InputError(
            f"input_size: {config.model or config.weights} does not take images of {side} px: {error}"
        ) from None
