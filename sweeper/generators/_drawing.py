"""Draws with a diffusers pipeline that is loaded: fixed batches, a random generator an image, safety checks heeded."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from sweeper.errors import InputError, RunFailed
from sweeper.generators import _pipelines, _prompts

if TYPE_CHECKING:
    from sweeper.generators.diffusers import Config

SAFETY_REDRAWS = 4


def takes_image(pipeline: Any) -> bool:
    """Whether a pipeline begins from an image and a strength."""
    return {"image", "strength"} <= set(inspect.signature(pipeline.__call__).parameters)


class DiffusersGenerator:
    """See `sweeper.generators.Generator`."""

    def __init__(self, config: Config, pipeline: Any) -> None:
        self._config = config
        self.batch_size = config.batch_size
        self.pipeline = pipeline
        self._takes = frozenset(inspect.signature(pipeline.__call__).parameters)
        self._check()

    def generate(
        self,
        labels: Sequence[int],
        class_names: Sequence[str],
        seeds: Sequence[int],
        starts: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """uint8 RGB images [B, H, W, 3]; image i depends on `labels[i]`, `seeds[i]` and `starts[i]` alone."""
        if len(labels) != len(seeds) or not labels:
            raise ValueError(f"one seed an image: {len(labels)} labels, {len(seeds)} seeds")
        if (starts is None) == (self._config.strength is not None) or len(starts or labels) != len(labels):
            raise ValueError(f"one start an image exactly where a strength is given: {starts and len(starts)}")
        conditions = self._conditions(labels, class_names, seeds)
        images = []
        for start in range(0, len(labels), self.batch_size):
            part = slice(start, start + self.batch_size)
            begun = None if starts is None else starts[part]
            images.append(self._draw(conditions[part], list(seeds[part]), begun))
        return np.concatenate(images)

    def _draw(self, conditions: list[Any], seeds: list[int], starts: Sequence[np.ndarray] | None) -> np.ndarray:
        """One batch, padded to the fixed size with copies of its last image."""
        count, size = len(seeds), self.batch_size
        padding = size - count
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in [*seeds, *[seeds[-1]] * padding]]
        name = "prompt" if "prompt" in self._takes else "class_labels"
        arguments = {name: conditions + [conditions[-1]] * padding, **self._fixed_arguments()}
        if starts is not None:
            arguments["image"] = self._enlarged([*starts, *[starts[-1]] * padding])
        images = np.empty(0)
        unsafe = np.ones(size, dtype=bool)
        for _ in range(SAFETY_REDRAWS):
            # A safety checker blanks an image. The generators have moved on, so that drawing again is another image.
            output = self._called(arguments, generators)
            images = np.where(unsafe[:, None, None, None], output.images, images) if len(images) else output.images
            unsafe &= np.array(getattr(output, "nsfw_content_detected", None) or [False] * size)
            if not unsafe[:count].any():
                return self._pixels(np.asarray(images[:count]))
        raise RunFailed(
            f"the safety checker of {self._config.model} blanked an image {SAFETY_REDRAWS} times in a row "
            f"({conditions[int(np.argmax(unsafe))]!r}); use another prompt"
        )

    def _called(self, arguments: Mapping[str, Any], generators: Sequence[torch.Generator]) -> Any:
        try:
            return self.pipeline(**arguments, generator=generators)
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"{self._config.model} does not fit into the device's memory with {self.batch_size} images at once; "
                "lower batch_size, or use precision: bf16"
            ) from error

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        if not np.isfinite(images).all():
            raise RunFailed(
                f"{self._config.model} drew an image that is not finite with precision: {self._config.precision}; "
                "use bf16 or fp32"
            )
        pixels = np.rint(images * 255).astype(np.uint8)
        return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels

    def _enlarged(self, starts: Sequence[np.ndarray]) -> torch.Tensor:
        """The images at the pipeline's size, floats in [0, 1]."""
        side = self._config.size or _pipelines.side(self.pipeline)
        if side is None:
            raise InputError(f"size: {self._name} does not say at which size it draws; give the side in pixels")
        resized = [Image.fromarray(start).resize((side, side), Image.Resampling.BICUBIC) for start in starts]
        pixels_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
        return pixels_BHWC.permute(0, 3, 1, 2).float() / 255

    def _conditions(self, labels: Sequence[int], class_names: Sequence[str], seeds: Sequence[int]) -> list[Any]:
        """What to give the pipeline for each image: a prompt or a class of its own."""
        config = self._config
        if config.templates:
            return [
                _prompts.text(config.templates, config.class_prompts, class_names[label], seed)
                for label, seed in zip(labels, seeds, strict=True)
            ]
        known = _pipelines.num_classes(self.pipeline)
        ids = config.class_ids
        if ids is None and known != len(class_names):
            raise InputError(
                f"{config.model} draws {known} classes and the dataset has {len(class_names)}; say which ones with "
                "class_ids: [...], the pipeline's class of each of the dataset's classes, in their order"
            )
        ids = tuple(range(known)) if ids is None else ids
        if len(ids) != len(class_names) or max(ids) >= known:
            raise InputError(
                f"class_ids: needs {len(class_names)} numbers, one a class, each from 0 to {known - 1}; "
                f"given {list(ids)}"
            )
        return [ids[label] for label in labels]

    def _fixed_arguments(self) -> dict[str, Any]:
        """Arguments that are the same for every batch."""
        config = self._config
        arguments: dict[str, Any] = {"num_inference_steps": config.steps, "output_type": "np"}
        if config.guidance is not None:
            arguments["guidance_scale"] = config.guidance
        if config.negative_prompt is not None:
            arguments["negative_prompt"] = [config.negative_prompt] * config.batch_size
        if config.strength is not None:
            arguments["strength"] = config.strength
        if config.size is not None and "height" in self._takes:  # from an image, some take that image's size instead
            arguments |= {"height": config.size, "width": config.size}
        if "batch_size" in self._takes:
            arguments["batch_size"] = config.batch_size
        return arguments

    @property
    def _name(self) -> str:
        return f"{self._config.model} ({type(self.pipeline).__name__})"

    def _check(self) -> None:
        """Refuse what this pipeline would ignore, and miss nothing that it needs."""
        config, takes, name = self._config, self._takes, self._name
        if "prompt" in takes and config.prompt is None:
            raise InputError(
                f"prompt: {name} draws from a text; give one, such as 'a photo of a {_prompts.PLACEHOLDER}'"
            )
        if "prompt" not in takes and "class_labels" not in takes:
            raise InputError(
                f"model: {name} takes neither class_labels nor a prompt, so that no class can be asked for"
            )
        if "prompt" not in takes and _pipelines.num_classes(self.pipeline) == 0:
            raise InputError(f"model: {name} was trained without classes, so that none can be asked for")
        if config.strength is None and takes_image(self.pipeline):
            raise InputError(f"strength: {name} begins from an image; say how far to go from it, such as 0.6")
        given: Mapping[str, tuple[object, str]] = {
            "prompt": (config.prompt, "prompt"),
            "negative_prompt": (config.negative_prompt, "negative_prompt"),
            "class_ids": (config.class_ids, "class_labels"),
            "guidance": (config.guidance, "guidance_scale"),
            "size": (config.size if config.strength is None else None, "height"),
            "steps": (config.steps, "num_inference_steps"),
        }
        for key, (value, parameter) in given.items():
            if value is not None and parameter not in takes:
                raise InputError(f"{key}: {value!r} is given, but {name} takes no {parameter}; remove it")
