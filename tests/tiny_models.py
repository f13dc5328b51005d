"""Folders of tiny models with random weights, in the formats of the libraries that read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models._hub import save_config_for_hf

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLIP_PREPROCESSING = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}


def saved_timm(folder: Path, name: str, num_classes: int, **preprocessing: Any) -> Any:
    """A folder as the hub holds a timm model, and the model in eval mode."""
    torch.manual_seed(5)
    model = timm.create_model(name, num_classes=num_classes).eval()
    model.pretrained_cfg = {**model.pretrained_cfg, **preprocessing}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors")
    save_config_for_hf(model, str(folder / "config.json"))
    return model


def saved_clip(folder: Path, seed: int = 5, **changes: Any) -> Any:
    """A folder as the hub holds a model of open_clip, and the model in eval mode; `changes` are to its config."""
    import open_clip

    torch.manual_seed(seed)
    config = {**CLIP_CONFIG, **changes}
    model = open_clip.CLIP(**config).eval()
    # text embeddings of an untrained tower are all alike; larger projections set classes apart
    with torch.no_grad():
        model.text_projection.mul_(3)
        model.token_embedding.weight.mul_(50)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": CLIP_PREPROCESSING}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return model
