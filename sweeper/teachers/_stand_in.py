"""A teacher that is not on this disk, as a small one of its architecture with random weights: for rehearsals."""

from __future__ import annotations

from typing import Any

# Arguments by which timm's builders make a family's smallest member; the first set that a builder takes is used.
CUTS: tuple[dict[str, Any], ...] = (
    {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128)},  # ResNet and kin
    {"depths": (1, 1, 1, 1), "dims": (16, 32, 64, 128)},  # ConvNeXt
    {"depths": (1, 1, 1, 1), "embed_dim": 48},  # Swin
    {"depth": 1, "embed_dim": 96},  # vision transformers
)


def cut_down(model: str, model_args: dict[str, Any], **fixed: Any) -> dict[str, Any]:
    """`model_args` that make `model` small, where its builder takes any of `CUTS`; else as they are.

    Args:
        fixed: further arguments that the model has to take.
    """
    import timm
    import torch

    for cut in CUTS:
        arguments = {**model_args, **cut}
        try:
            with torch.device("meta"):
                timm.create_model(model, **arguments, **fixed)
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError):  # each builder refuses in its own way
            continue
        return arguments
    return model_args
