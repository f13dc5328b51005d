"""Any diffusers pipeline that draws from a class label or a text, and perhaps from an image: hub id, folder or zoo's.

What a pipeline takes is read from the signature of its `__call__`, so that no list of pipelines is kept here.
`class_labels`: class-conditional, as ConsistencyModelPipeline and DiTPipeline. `prompt`: text-to-image. With `strength`
its image-to-image form draws, each image from a real training image of its class (SDEdit, Meng et al. 2022,
arXiv 2108.01073; as augmentation DA-Fusion, Trabucco et al. 2023, arXiv 2302.07944).

Each image has a random generator of its own, on the CPU, so that it is the same on every device up to rounding, and
each call has the same batch size (the last one is padded), so that it is the same among whichever neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from sweeper import zoo
from sweeper.errors import InputError
from sweeper.fingerprint import folder_sha256
from sweeper.generators import FilterConfig, _prompts
from sweeper.registry import Settings

if TYPE_CHECKING:
    import torch

    from sweeper.generators._drawing import DiffusersGenerator


def _is_none(value: object) -> bool:
    return value is None


class Config(Settings):
    """A pipeline and how to draw with it.

    `prompt` is a template with `{label}` for text-to-image pipelines, or a list of them of which each image gets one;
    null for class-conditional pipelines. The class's name goes in as words (`wording.spoken`); `class_prompts` holds
    whole prompts of single classes. For class-conditional ones `class_ids[i]` is the pipeline's class of the dataset's
    class i, by default i. `strength`: how far, in (0, 1], an image goes from the real one that it begins with; left
    out, it begins from noise. `scheduler` is a class of diffusers without its ending (`EulerDiscrete`, `LCM`).
    `guidance: null` leaves the pipeline's own. `size` is the side in pixels where the pipeline lets one choose.

    `max_ratio`: the most synthetic images to one real one. `filter`: which of them are kept, by a kind of `filters`.
    `batch_size` and `compile` (torch.compile of the denoiser, on GPUs) are execution: they change no image by more than
    rounding. `trust: true` admits pipelines that bring code of their own, which is run, and weights that are no
    safetensors.
    """

    EXECUTION_ONLY: ClassVar[frozenset[str]] = frozenset({"trust", "compile"})

    kind: Literal["diffusers"] = "diffusers"
    model: str
    prompt: str | tuple[str, ...] | None = None
    class_prompts: dict[str, str] = Field(default_factory=dict, exclude_if=lambda value: not value)
    negative_prompt: str | None = Field(default=None, exclude_if=_is_none)
    class_ids: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    strength: Annotated[float, Field(gt=0, le=1)] | None = Field(default=None, exclude_if=_is_none)
    scheduler: str | None = Field(default=None, exclude_if=_is_none)
    guidance: Annotated[float, Field(ge=0)] | None = None
    steps: Annotated[int, Field(ge=1, le=10_000)] = 25
    size: Annotated[int, Field(ge=8, le=4096)] | None = None
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    revision: str | None = None
    max_ratio: Annotated[float, Field(ge=0)] = 1.0
    filter: FilterConfig | None = Field(default=None, exclude_if=_is_none)
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    compile: bool = False
    trust: bool = False

    @field_validator("prompt", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        texts = value if isinstance(value, list | tuple) else () if value is None else (value,)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"has to be a text or a list of texts; given {value!r}")
        return value

    @field_validator("prompt")
    @classmethod
    def _names_the_class(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if value is None:
            return None
        templates = (value,) if isinstance(value, str) else value
        if not templates:
            raise ValueError("needs at least one template; leave it out where the pipeline draws from class labels")
        for template in templates:
            if _prompts.PLACEHOLDER not in template:
                raise ValueError(
                    f"{template!r} does not say where the class goes: write {_prompts.PLACEHOLDER} "
                    f"('a photo of a {_prompts.PLACEHOLDER}')"
                )
        return templates[0] if len(templates) == 1 else templates

    @model_validator(mode="after")
    def _goes_together(self) -> Config:
        if self.class_prompts and self.prompt is None:
            raise ValueError("class_prompts: needs a prompt for the other classes")
        if self.strength is not None and self.steps_made < 1:
            raise ValueError(
                f"strength: {self.strength:g} of {self.steps} steps is none at all; raise steps to "
                f"{-(-1 // self.strength):g} or more"
            )
        return self

    @property
    def steps_made(self) -> int:
        """Steps of the denoiser: from an image, the part of `steps` that `strength` leaves."""
        return self.steps if self.strength is None else min(int(self.steps * self.strength), self.steps)

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts that an image's is chosen from."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt or ()


def identity(config: Config) -> dict[str, Any]:
    """What decides an image; a local folder counts by its contents, so that it may be moved.

    `trust` is no part of it: it admits pipelines, and changes none.

    Raises:
        InputError: no such folder, or no such scheduler.
    """
    left_out = {"model", "max_ratio", "filter", "batch_size", "compile", "trust"}
    named = config.model_dump(mode="json", exclude=left_out)
    path = _local_folder(config)
    if config.scheduler is not None:
        from sweeper.generators import _pipelines

        _pipelines.scheduler_class(config.scheduler)
    return {**named, "model": config.model if path is None else {"folder_sha256": folder_sha256(path)}}


def starts_from_images(config: Config) -> bool:
    """See `sweeper.generators`."""
    return config.strength is not None


def wording(config: Config, class_names: Sequence[str]) -> dict[str, Any]:
    """See `sweeper.generators`."""
    return _prompts.wording(config.class_prompts, class_names) if config.templates else {}


def build(config: Config, device: torch.device | str) -> DiffusersGenerator:
    """The pipeline on `device`, checked against the configuration.

    Raises:
        InputError: no such pipeline, or one that does not take what the configuration gives.
        RunFailed: the hub did not deliver.
    """
    import torch

    from sweeper.generators import _drawing, _pipelines

    is_cpu = torch.device(device).type == "cpu"
    if config.precision == "fp16" and is_cpu:
        raise InputError("precision: fp16 needs a GPU, and images are drawn on the CPU here; use fp32 or bf16")
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.precision]
    pipeline = _pipelines.load(config.model, _local_folder(config), config.revision, dtype, trust=config.trust)
    if config.strength is not None and not _drawing.takes_image(pipeline):
        pipeline = _pipelines.image_to_image(config.model, pipeline, dtype)
    if config.scheduler is not None:
        _pipelines.with_scheduler(config.model, pipeline, config.scheduler)
    pipeline = pipeline.to(device)
    if config.compile and not is_cpu:
        _pipelines.compile_denoiser(pipeline)
    return _drawing.DiffusersGenerator(config, pipeline)


def stand_in(config: Config, folder: Path, num_classes: int) -> Config:
    """For a rehearsal: a tiny random pipeline in place of the hub's; what is here stays itself."""
    import torch

    if config.precision == "fp16" and not torch.cuda.is_available():
        config = config.model_copy(update={"precision": "fp32"})
    if _local_folder(config) is not None:
        return config
    from sweeper.generators import _pipelines, _stand_in

    steps = min(config.steps, 2 if config.strength is None else math.ceil(1 / config.strength))
    changes: dict[str, Any] = {"revision": None, "steps": steps, "size": None}
    if config.templates:
        made = _stand_in.text_to_image(folder)
        if (config.scheduler or "").startswith(_pipelines.FLOW):  # the small pipeline is none of these
            changes["scheduler"] = None
    else:
        made = _stand_in.class_conditional(folder, max(config.class_ids or (num_classes - 1,)) + 1)
        changes["guidance"] = None
    return config.model_copy(update={**changes, "model": str(made)})


def flops_an_image(config: Config, class_names: Sequence[str]) -> float | None:
    """Operations of drawing one image; None for a pipeline that is not on this disk or can not be counted."""
    path = _local_folder(config)
    if path is None:
        return None
    from sweeper.generators import _flops

    return _flops.an_image(
        path,
        steps=config.steps_made,
        guidance=config.guidance,
        size=config.size,
        from_image=config.strength is not None,
    )


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
