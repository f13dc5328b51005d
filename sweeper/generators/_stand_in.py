"""Pipelines that are not on this disk, as tiny ones with random weights: for rehearsals.

They are saved as folders and loaded like any other, so that all of the loading and drawing code runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIDE = 32  # of an image in pixels
WIDTH = 16


def text_to_image(folder: Path) -> Path:
    """A Stable Diffusion pipeline: text encoder, latent UNet, autoencoder."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = [chr(code) for code in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(WIDTH // 2, WIDTH),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        norm_num_groups=4,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return _saved(pipeline, folder)


def class_conditional(folder: Path, num_classes: int) -> Path:
    """A pipeline that draws pixels from a class."""
    from diffusers import CMStochasticIterativeScheduler, ConsistencyModelPipeline, UNet2DModel

    unet = UNet2DModel(
        sample_size=SIDE,
        num_class_embeds=num_classes,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        block_out_channels=(WIDTH // 2, WIDTH),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return _saved(ConsistencyModelPipeline(unet=unet, scheduler=CMStochasticIterativeScheduler()), folder)


def _saved(pipeline: Any, folder: Path) -> Path:
    import transformers.utils.logging
    from diffusers.utils import logging

    for library in (logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    pipeline.save_pretrained(str(folder))
    return folder
