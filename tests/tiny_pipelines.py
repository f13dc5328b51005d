"""Tiny diffusers pipelines and a tiny CLIP with random weights, made and saved by the libraries themselves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)
from transformers.utils import logging

WIDTH, TIME_WIDTH = 16, 8
SIDE = 8  # pixels of what they draw
NUM_CLASSES = 1000  # of the DiT


def _quiet(make: Callable[[], Any]) -> Any:
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def _tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's, with bytes for its vocabulary and no merges."""
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(b) for b in printed] + [chr(256 + n) for n in range(256 - len(printed))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=77)


def _text(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 77,
        "bos_token_id": len(tokenizer) - 2,
        "eos_token_id": len(tokenizer) - 1,
        "projection_dim": WIDTH,
    }


def _unet(width: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 2,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=width,
        attention_head_dim=4,
        **more,
    )


def _autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )


def stable_diffusion(folder: Path) -> Path:
    """StableDiffusionPipeline, as SD 1.5 and SD-turbo are."""

    def make() -> StableDiffusionPipeline:
        tokenizer = _tokenizer(folder / "tokenizer")
        return StableDiffusionPipeline(
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**_text(tokenizer))),
            tokenizer=tokenizer,
            unet=_unet(WIDTH),
            scheduler=PNDMScheduler(skip_prk_steps=True, steps_offset=1, beta_schedule="scaled_linear"),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    _quiet(make).save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """StableDiffusionXLPipeline: two text encoders, and a UNet that takes sizes and a pooled text."""

    def make() -> StableDiffusionXLPipeline:
        tokenizer = _tokenizer(folder / "tokenizer")
        return StableDiffusionXLPipeline(
            vae=_autoencoder(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**_text(tokenizer))),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**_text(tokenizer))),
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=_unet(
                2 * WIDTH,
                addition_embed_type="text_time",
                addition_time_embed_dim=TIME_WIDTH,
                projection_class_embeddings_input_dim=WIDTH + 6 * TIME_WIDTH,
                use_linear_projection=True,
            ),
            scheduler=EulerDiscreteScheduler(),
        )

    _quiet(make).save_pretrained(folder)
    return folder


def dit(folder: Path) -> Path:
    """DiTPipeline, whose null class is number 1000 by its code."""

    def make() -> DiTPipeline:
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=SIDE // 2,
            num_embeds_ada_norm=NUM_CLASSES,
            norm_num_groups=4,
        )
        return DiTPipeline(transformer, _autoencoder(), DDIMScheduler())

    _quiet(make).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    """CLIPModel with its processor, for images of 16 px."""

    def make() -> CLIPModel:
        vision = {
            "hidden_size": WIDTH,
            "intermediate_size": WIDTH,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
            "projection_dim": WIDTH,
        }
        tokenizer = _tokenizer(folder / "made")
        images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
        CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
        return CLIPModel(CLIPConfig(text_config=_text(tokenizer), vision_config=vision, projection_dim=WIDTH))

    _quiet(make).save_pretrained(folder)
    return folder
