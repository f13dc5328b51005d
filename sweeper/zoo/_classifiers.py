"""Pre-training of the two embedded teachers on the digits' foundation pool.

Crops are the sweep's own views (scale 0.5 to 1), so that a teacher knows what it will be asked, with small rotations,
shears and shifts on top, which 1,000 images of 8x8 pixels need.
"""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from sweeper.datasets import digits
from sweeper.views import ViewConfig, apply_views, draw_views

IMAGE_SIZE = 32
PREPROCESSING = {
    "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "cnn": {
        "model": "resnet10t",
        "model_args": {"channels": [48, 96, 128, 216]},
        "steps": 2000,
        "lr": 2e-3,
    },
    "vit": {
        "model": "test_vit",
        "model_args": {"img_size": IMAGE_SIZE, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4},
        "steps": 4000,
        "lr": 1e-3,
    },
}
BATCH, WEIGHT_DECAY, WARMUP, EMA = 64, 0.05, 0.05, 0.998
ROTATION, SHEAR, SHIFT = math.radians(15), 0.15, 0.08


def to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """uint8 [N, 3, 32, 32] of 8x8 images, resized as the images stage does."""
    resized = [
        np.asarray(Image.fromarray(i).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)) for i in images
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous()


def train(name: str, seed: int) -> torch.nn.Module:
    """The averaged weights at the end of a fixed number of steps; nothing is chosen on any split."""
    recipe = MODELS[name]
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pool, targets = digits.foundation()
    images_NCHW, labels_N = to_tensor(pool), torch.from_numpy(targets)
    model = timm.create_model(recipe["model"], num_classes=10, **recipe["model_args"])
    average: torch.nn.Module = deepcopy(model).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe["lr"], weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step / recipe["steps"]))
    for step in range(recipe["steps"]):
        rows = torch.from_numpy(rng.choice(len(images_NCHW), BATCH, replace=False))
        logits_BK = model.train()(augment(images_NCHW[rows], seed, step, rng) * 2 - 1)
        loss = F.cross_entropy(logits_BK, labels_N[rows])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        update_average(average, model, min(EMA, (step + 1) / (step + 10)))
        if step % 200 == 0:
            print(f"{name}: step {step}/{recipe['steps']}, loss {loss.item():.4f}", flush=True)
    return average


def augment(images_BCHW: torch.Tensor, seed: int, step: int, rng: np.random.Generator) -> torch.Tensor:
    """Random crops as the sweep draws them, then a random small affine map; floats in [0, 1]."""
    count = len(images_BCHW)
    crops_BCHW = crop(images_BCHW, seed, step)
    angle, shear = rng.uniform(-ROTATION, ROTATION, count), rng.uniform(-SHEAR, SHEAR, count)
    shift = rng.uniform(-2 * SHIFT, 2 * SHIFT, (count, 2))
    maps = np.stack(
        [
            np.stack([np.cos(angle), -np.sin(angle) + shear, shift[:, 0]], axis=1),
            np.stack([np.sin(angle), np.cos(angle), shift[:, 1]], axis=1),
        ],
        axis=1,
    )
    grid = F.affine_grid(torch.from_numpy(maps).float(), list(crops_BCHW.shape), align_corners=False)
    return F.grid_sample(crops_BCHW, grid, align_corners=False)


def crop(images_BCHW: torch.Tensor, seed: int, number: int) -> torch.Tensor:
    """A view of each image as the sweep draws them; floats in [0, 1]."""
    count = len(images_BCHW)
    keys = np.arange(count, dtype=np.uint64)
    boxes_B5 = draw_views(ViewConfig(crop_scale=(0.5, 1.0)), seed, keys, np.full(count, number + 1))
    return apply_views(images_BCHW, torch.from_numpy(boxes_B5), IMAGE_SIZE)


def update_average(average: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    """One step of an exponential moving average of the weights and of the running statistics."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def save(model: Any, name: str, folder: Path) -> None:
    """timm's local-dir format, weights in fp16. The config keeps nothing of timm's own weights of that architecture."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architecture": MODELS[name]["model"],
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": MODELS[name]["model_args"],
        "pretrained_cfg": {
            **PREPROCESSING,
            "num_classes": model.num_classes,
            "first_conv": model.pretrained_cfg["first_conv"],
            "classifier": model.pretrained_cfg["classifier"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _warm_cosine(done: float) -> float:
    return done / WARMUP if done < WARMUP else 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
