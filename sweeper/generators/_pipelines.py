"""Loads a diffusers pipeline: from safetensors and JSON alone, unless its user trusts whoever made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import logging
from safetensors import SafetensorError

from sweeper import weights
from sweeper.errors import InputError, RunFailed


def load(model: str, path: Path | None, revision: str | None, *, trust: bool) -> Any:
    """The pipeline on the CPU, without a word on the terminal.

    Args:
        model: as in the space file.
        path: its folder; None where `model` is a hub id.
        trust: also code that the pipeline brings, and weights that are pickles.

    Raises:
        InputError: the folder can not be loaded, or only with `trust`.
        RunFailed: the hub did not deliver.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        if trust:
            source = model if path is None else str(path)
            pipeline = DiffusionPipeline.from_pretrained(source, revision=revision, trust_remote_code=True)
        else:
            folder = path or Path(DiffusionPipeline.download(model, revision=revision, use_safetensors=True))
            pipeline = _without_code(model, folder)
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


def _without_code(model: str, folder: Path) -> Any:
    # refused here, whatever the installed version of diffusers thinks of code in a local folder
    code = next((file.relative_to(folder) for file in sorted(folder.rglob("*.py"))), None)
    if code is not None:
        raise InputError(f"model: {model} brings code of its own ({code}); say `trust: true` beside it to have it run")
    with weights.safetensors_only(f"model: {model}"):
        return DiffusionPipeline.from_pretrained(str(folder), use_safetensors=True, trust_remote_code=False)
