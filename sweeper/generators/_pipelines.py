"""Loads a diffusers pipeline: from safetensors and JSON alone, unless its user trusts whoever made it."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers.utils.logging
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from diffusers.utils import logging
from safetensors import SafetensorError

from sweeper import weights
from sweeper.errors import InputError, RunFailed

SCHEDULER, FLOW = "Scheduler", "FlowMatch"
DENOISERS = ("unet", "transformer")


def load(model: str, path: Path | None, revision: str | None, dtype: torch.dtype, *, trust: bool) -> Any:
    """The pipeline on the CPU, without a word on the terminal.

    Args:
        model: as in the space file.
        path: its folder; None where `model` is a hub id.
        trust: also code that the pipeline brings, and weights that are pickles.

    Raises:
        InputError: the folder can not be loaded, or only with `trust`.
        RunFailed: the hub did not deliver.
    """
    for library in (logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        if trust:
            source = model if path is None else str(path)
            pipeline = DiffusionPipeline.from_pretrained(source, revision=revision, dtype=dtype, trust_remote_code=True)
        else:
            folder = path or Path(DiffusionPipeline.download(model, revision=revision, use_safetensors=True))
            pipeline = _without_code(model, folder, dtype)
    except (OSError, ValueError, ImportError, AttributeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if path is not None:
            way_out = f"; {weights.TRUST}" if "safetensors" in reason else ""
            raise InputError(f"model: {model} can not be loaded by diffusers: {reason}{way_out}") from error
        raise RunFailed(
            f"{model} could not be fetched from the hub: {reason}; check the name and the network, or save the "
            "pipeline as a folder (save_pretrained) and give it as model:"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _without_code(model: str, folder: Path, dtype: torch.dtype) -> Any:
    # refused here, whatever the installed version of diffusers thinks of code in a local folder
    code = next((file.relative_to(folder) for file in sorted(folder.rglob("*.py"))), None)
    if code is not None:
        raise InputError(f"model: {model} brings code of its own ({code}); say `trust: true` beside it to have it run")
    with weights.safetensors_only(f"model: {model}"):
        return DiffusionPipeline.from_pretrained(
            str(folder), use_safetensors=True, dtype=dtype, trust_remote_code=False
        )


def image_to_image(model: str, pipeline: Any, dtype: torch.dtype) -> Any:
    """The same models as a pipeline that begins from an image.

    Raises:
        InputError: diffusers has no such form of this pipeline.
    """
    try:
        found = AutoPipelineForImage2Image.from_pipe(pipeline, dtype=dtype)
    except ValueError as error:
        raise InputError(
            f"strength: diffusers has no image-to-image form of {model} ({type(pipeline).__name__}); remove it"
        ) from error
    found.set_progress_bar_config(disable=True)
    return found


def scheduler_class(name: str) -> type[Any]:
    """A scheduler of diffusers by its name without `Scheduler`. Raises InputError, with the nearest name."""
    known = [found.removesuffix(SCHEDULER) for found in dir(diffusers.schedulers) if found.endswith(SCHEDULER)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"scheduler: {name!r} is none of diffusers'{hint} (a class's name without {SCHEDULER!r}: EulerDiscrete, "
            "DPMSolverMultistep, LCM, ...)"
        )
    found: type[Any] = getattr(diffusers.schedulers, name + SCHEDULER)
    return found


def with_scheduler(model: str, pipeline: Any, name: str) -> None:
    """Give a pipeline another scheduler over the noise that its model was trained with, in place.

    Raises:
        InputError: no such scheduler, or one for models that were trained to say something else.
    """
    cls, own = scheduler_class(name), type(pipeline.scheduler).__name__
    if own.startswith(FLOW) != name.startswith(FLOW):
        kind = "a flow-matching model" if own.startswith(FLOW) else "no flow-matching model"
        raise InputError(f"scheduler: {name!r} does not suit {model}, which is {kind} (its own is {own})")
    pipeline.scheduler = cls.from_config(pipeline.scheduler.config)


def compile_denoiser(pipeline: Any) -> None:
    """Have torch compile the model that runs at every step, in place; it does so at the first batch."""
    for part in DENOISERS:
        model = getattr(pipeline, part, None)
        if model is not None:
            model.compile()


def side(pipeline: Any) -> int | None:
    """Pixels of the squares that a pipeline was made for; None where it does not say."""
    for part in DENOISERS:
        model = getattr(pipeline, part, None)
        size = model.config.get("sample_size") if model is not None else None
        if isinstance(size, int):
            return size * int(getattr(pipeline, "vae_scale_factor", 1))
    return None


def num_classes(pipeline: Any) -> int:
    """Classes that a class-conditional pipeline was trained on; 0 for an unconditional one."""
    for part, key in zip(DENOISERS, ("num_class_embeds", "num_embeds_ada_norm"), strict=True):
        model = getattr(pipeline, part, None)
        if model is not None:
            return int(model.config.get(key) or 0)
    return 0
