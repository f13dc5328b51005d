"""Operations of drawing one image, from the configurations of a pipeline's folder: no weight is read."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper import flops

if TYPE_CHECKING:
    import torch

TOKENS = 77  # of CLIP's text encoders
GUIDED = "guidance_scale"


def an_image(folder: Path, *, steps: int, guidance: float | None, size: int | None, from_image: bool) -> float | None:
    """The denoiser at every step, and the autoencoder; None for a pipeline whose denoiser can not be counted.

    Text encoders, which run once a prompt, are left out.

    Args:
        steps: that are really made.
        guidance: None for the pipeline's own.
        size: pixels of a side; None for the pipeline's own.
        from_image: the autoencoder encodes an image, too.
    """
    part = next((part for part in ("unet", "transformer") if (folder / part / "config.json").is_file()), None)
    if part is None:
        return None
    settings = _settings(folder / part)
    autoencoder = _settings(folder / "vae") if (folder / "vae" / "config.json").is_file() else None
    side = settings.get("sample_size")
    if size is not None:
        side = size // _factor(autoencoder)
    if not isinstance(side, int):
        return None
    a_step = flops.forward_flops(lambda: _model(settings), lambda model: _denoise(model, settings, side))
    if a_step is None:
        return None
    once = _autoencoder_flops(autoencoder, side, from_image) if autoencoder is not None else 0.0
    return _passes(folder, settings, guidance) * steps * a_step + once


def _settings(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def _model(settings: dict[str, Any]) -> torch.nn.Module:
    import diffusers

    model: torch.nn.Module = getattr(diffusers, settings["_class_name"]).from_config(settings)
    return model


def _factor(autoencoder: dict[str, Any] | None) -> int:
    """Pixels of an image's side to one of the latent's."""
    return 1 if autoencoder is None else 2 ** (len(autoencoder.get("block_out_channels", (0,) * 4)) - 1)


def _passes(folder: Path, settings: dict[str, Any], guidance: float | None) -> int:
    """2 where classifier-free guidance asks the denoiser with and without the condition."""
    import diffusers

    if guidance is None:
        name = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
        pipeline = getattr(diffusers, str(name), None)
        takes = inspect.signature(pipeline.__call__).parameters if pipeline is not None else {}
        default = takes[GUIDED].default if GUIDED in takes else 0.0
        guidance = float(default) if isinstance(default, int | float) else 0.0
    is_distilled = settings.get("time_cond_proj_dim") is not None  # takes the scale as an input instead
    return 2 if guidance > 1 and not is_distilled else 1


def _denoise(model: torch.nn.Module, settings: dict[str, Any], side: int) -> None:
    import torch

    takes = inspect.signature(model.forward).parameters
    arguments: dict[str, Any] = {"timestep": torch.zeros(1, dtype=torch.long)}
    if "class_labels" in takes and (settings.get("num_class_embeds") or settings.get("num_embeds_ada_norm")):
        arguments["class_labels"] = torch.zeros(1, dtype=torch.long)
    if "encoder_hidden_states" in takes and isinstance(settings.get("cross_attention_dim"), int):
        arguments["encoder_hidden_states"] = torch.zeros(1, TOKENS, settings["cross_attention_dim"])
    if settings.get("addition_embed_type") == "text_time":  # SDXL
        numbers, width = 6, settings["addition_time_embed_dim"]
        text = settings["projection_class_embeddings_input_dim"] - numbers * width
        arguments["added_cond_kwargs"] = {"text_embeds": torch.zeros(1, text), "time_ids": torch.zeros(1, numbers)}
    model(torch.empty(1, settings["in_channels"], side, side), **arguments)


def _autoencoder_flops(settings: dict[str, Any], side: int, from_image: bool) -> float:
    """Decoding one latent, and encoding one image where there is one; 0 where that can not be counted."""
    import torch

    pixels, channels = side * _factor(settings), int(settings.get("latent_channels", 4))

    def decode(model: Any) -> None:
        model.decode(torch.empty(1, channels, side, side))

    def encode(model: Any) -> None:
        model.encode(torch.empty(1, 3, pixels, pixels))

    calls = [decode, encode] if from_image else [decode]
    return math.fsum(flops.forward_flops(lambda: _model(settings), call) or 0.0 for call in calls)
