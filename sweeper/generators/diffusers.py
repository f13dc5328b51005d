"""Any diffusers pipeline that draws from a class label or a text: hub id, local folder, or the zoo's.

What a pipeline takes is read from the signature of its `__call__`, so that no list of pipelines is kept here.
`class_labels`: class-conditional, as ConsistencyModelPipeline and DiTPipeline. `prompt`: text-to-image.

Each image has a random generator of its own, on the CPU, so that it is the same on every device up to rounding, and
each call has the same batch size (the last one is padded), so that it is the same among whichever neighbours.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from sweeper import zoo
from sweeper.errors import InputError, RunFailed
from sweeper.fingerprint import folder_sha256
from sweeper.registry import Settings

if TYPE_CHECKING:
    import torch

PLACEHOLDER = "{label}"
SAFETY_REDRAWS = 4
LATENT_FACTOR, TOKENS = 8, 77  # of Stable Diffusion's autoencoders and text encoders, which the forecast assumes


class Config(Settings):
    """A pipeline and how to draw with it.

    `prompt` is a template with `{label}` for text-to-image pipelines (underscores of class names become spaces), null
    for class-conditional ones; for those `class_ids[i]` is the pipeline's class of the dataset's class i, by default i.
    `guidance: null` leaves the pipeline's own. `size` is the side in pixels where the pipeline lets one choose.
    `batch_size` is execution: it changes no image by more than rounding. `trust: true` admits pipelines that bring
    code of their own, which is run, and weights that are no safetensors.
    """

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"trust"})

    kind: Literal["diffusers"] = "diffusers"
    model: str
    prompt: str | None = None
    class_ids: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    guidance: Annotated[float, Field(ge=0)] | None = None
    steps: Annotated[int, Field(ge=1)] = 25
    size: Annotated[int, Field(ge=8)] | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    revision: str | None = None
    max_ratio: Annotated[float, Field(ge=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 64
    trust: bool = False

    @field_validator("prompt")
    @classmethod
    def _names_the_class(cls, value: str | None) -> str | None:
        if value is not None and PLACEHOLDER not in value:
            raise ValueError(
                f"{value!r} does not say where the class goes: write {PLACEHOLDER} ('a photo of a {PLACEHOLDER}')"
            )
        return value


def identity(config: Config) -> dict[str, Any]:
    """What decides an image; a local folder counts by its contents, so that it may be moved.

    `trust` is no part of it: it admits pipelines, and changes none.
    """
    named = config.model_dump(mode="json", exclude={"model", "max_ratio", "batch_size", "trust"})
    path = _local_folder(config)
    return {**named, "model": config.model if path is None else {"folder_sha256": folder_sha256(path)}}


def build(config: Config, device: torch.device | str) -> DiffusersGenerator:
    """The pipeline on `device`, checked against the configuration.

    Raises:
        InputError: no such pipeline, or one that does not take what the configuration gives.
        RunFailed: the hub did not deliver.
    """
    import torch

    from sweeper.generators import _pipelines

    if config.precision == "fp16" and torch.device(device).type == "cpu":
        raise InputError("precision: fp16 needs a GPU, and images are drawn on the CPU here; use fp32 or bf16")
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
    pipeline = _pipelines.load(config.model, _local_folder(config), config.revision, trust=config.trust)
    return DiffusersGenerator(config, pipeline.to(device, dtype))


def flops_an_image(config: Config, class_names: Sequence[str]) -> float | None:
    """Operations of drawing one image: the denoiser's, at every step; None for a pipeline that is not on this disk.

    Text encoders and decoders, which run once an image, are left out.
    """
    path = _local_folder(config)
    part = next((p for p in ("unet", "transformer") if path is not None and (path / p / "config.json").is_file()), None)
    if path is None or part is None:
        return None
    import diffusers
    import torch

    from sweeper import flops

    settings = json.loads((path / part / "config.json").read_text(encoding="utf-8"))
    kind = getattr(diffusers, settings["_class_name"], None)
    size = settings.get("sample_size")
    if kind is None or not isinstance(size, int):
        return None
    if config.size is not None:
        size = config.size // LATENT_FACTOR if (path / "vae").is_dir() else config.size
    passes = 2 if (config.guidance or 0) > 1 else 1  # classifier-free guidance asks twice

    def denoise(model: torch.nn.Module) -> None:
        takes = inspect.signature(model.forward).parameters
        arguments: dict[str, Any] = {"timestep": torch.zeros(1, dtype=torch.long)}
        if "class_labels" in takes and (settings.get("num_class_embeds") or settings.get("num_embeds_ada_norm")):
            arguments["class_labels"] = torch.zeros(1, dtype=torch.long)
        if "encoder_hidden_states" in takes and isinstance(settings.get("cross_attention_dim"), int):
            arguments["encoder_hidden_states"] = torch.zeros(1, TOKENS, settings["cross_attention_dim"])
        model(torch.empty(1, settings["in_channels"], size, size), **arguments)

    a_step = flops.forward_flops(lambda: kind.from_config(settings), denoise)
    return None if a_step is None else passes * config.steps * a_step


class DiffusersGenerator:
    """See `sweeper.generators.Generator`."""

    def __init__(self, config: Config, pipeline: Any) -> None:
        self._config = config
        self.pipeline = pipeline
        self._takes = frozenset(inspect.signature(pipeline.__call__).parameters)
        self._check()

    def generate(self, labels: Sequence[int], class_names: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """uint8 RGB images [B, H, W, 3]; image i depends on `labels[i]` and `seeds[i]` alone."""
        if len(labels) != len(seeds) or not labels:
            raise ValueError(f"one seed an image: {len(labels)} labels, {len(seeds)} seeds")
        conditions = self._conditions(class_names)
        size = self._config.batch_size
        images = []
        for start in range(0, len(labels), size):
            part = slice(start, start + size)
            drawn = self._draw([conditions[label] for label in labels[part]], list(seeds[part]))
            images.append(drawn)
        return np.concatenate(images)

    def _draw(self, conditions: list[Any], seeds: list[int]) -> np.ndarray:
        """One batch, padded to the fixed size with copies of its last image."""
        import torch

        count, size = len(seeds), self._config.batch_size
        padding = size - count
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in [*seeds, *[seeds[-1]] * padding]]
        name = "prompt" if "prompt" in self._takes else "class_labels"
        arguments = {name: conditions + [conditions[-1]] * padding, **self._fixed_arguments()}
        images = np.empty(0)
        unsafe = np.ones(size, dtype=bool)
        for _ in range(SAFETY_REDRAWS):
            # A safety checker blanks an image. The generators have moved on, so that drawing again is another image.
            output = self.pipeline(**arguments, generator=generators)
            images = np.where(unsafe[:, None, None, None], output.images, images) if len(images) else output.images
            unsafe &= np.array(getattr(output, "nsfw_content_detected", None) or [False] * size)
            if not unsafe[:count].any():
                pixels = np.rint(np.asarray(images[:count]) * 255).astype(np.uint8)
                return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels
        raise RunFailed(
            f"the safety checker of {self._config.model} blanked an image {SAFETY_REDRAWS} times in a row "
            f"({conditions[int(np.argmax(unsafe))]!r}); use another prompt"
        )

    def _conditions(self, class_names: Sequence[str]) -> list[Any]:
        """What to give the pipeline for each class of the dataset: a prompt or a class of its own."""
        config = self._config
        if config.prompt is not None:
            return [config.prompt.replace(PLACEHOLDER, name.replace("_", " ")) for name in class_names]
        known = _num_classes(self.pipeline)
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
        return list(ids)

    def _fixed_arguments(self) -> dict[str, Any]:
        """Arguments that are the same for every batch."""
        config = self._config
        arguments: dict[str, Any] = {"num_inference_steps": config.steps, "output_type": "np"}
        if config.guidance is not None:
            arguments["guidance_scale"] = config.guidance
        if config.size is not None:
            arguments |= {"height": config.size, "width": config.size}
        if "batch_size" in self._takes:
            arguments["batch_size"] = config.batch_size
        return arguments

    def _check(self) -> None:
        """Refuse what this pipeline would ignore, and miss nothing that it needs."""
        config, takes = self._config, self._takes
        name = f"{config.model} ({type(self.pipeline).__name__})"
        if "prompt" in takes and config.prompt is None:
            raise InputError(f"prompt: {name} draws from a text; give one, such as 'a photo of a {PLACEHOLDER}'")
        if "prompt" not in takes and "class_labels" not in takes:
            raise InputError(
                f"model: {name} takes neither class_labels nor a prompt, so that no class can be asked for"
            )
        if "prompt" not in takes and _num_classes(self.pipeline) == 0:
            raise InputError(f"model: {name} was trained without classes, so that none can be asked for")
        given: Mapping[str, tuple[object, str]] = {
            "prompt": (config.prompt, "prompt"),
            "class_ids": (config.class_ids, "class_labels"),
            "guidance": (config.guidance, "guidance_scale"),
            "size": (config.size, "height"),
            "steps": (config.steps, "num_inference_steps"),
        }
        for key, (value, parameter) in given.items():
            if value is not None and parameter not in takes:
                raise InputError(f"{key}: {value!r} is given, but {name} takes no {parameter}; remove it")


def _num_classes(pipeline: Any) -> int:
    """Classes that a class-conditional pipeline was trained on; 0 for an unconditional one."""
    for part, key in (("unet", "num_class_embeds"), ("transformer", "num_embeds_ada_norm")):
        model = getattr(pipeline, part, None)
        if model is not None:
            return int(model.config.get(key) or 0)
    return 0


def _local_folder(config: Config) -> Path | None:
    """The folder of the pipeline, or None where `model` is a hub id."""
    if config.model.startswith(zoo.PREFIX):
        return zoo.resolve(config.model)
    path = Path(config.model).expanduser()
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise InputError(
                f"model: the folder {config.model} has no model_index.json, so it is not a diffusers pipeline"
            )
        return path
    if config.model.startswith((".", "/", "~")) or config.model.count("/") > 1:
        raise InputError(f"model: the folder {config.model} does not exist; allowed: a folder, a hub id, zoo:NAME")
    return None
