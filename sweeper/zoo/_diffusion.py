"""Pre-training of the embedded generator on the digits' foundation pool: pixel-space diffusion at 8x8.

v-prediction (Salimans & Ho 2022, arXiv 2202.00512) under the cosine schedule (Nichol & Dhariwal 2021, arXiv
2102.09672), sampled with DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095). The pipeline is diffusers'
`ConsistencyModelPipeline`, the library's class-conditional pipeline in pixel space; its loop is that of any scheduler,
so that no pipeline code of our own has to be shipped or trusted.
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import ConsistencyModelPipeline, DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
from torch.nn import functional as F

from sweeper.datasets import digits
from sweeper.zoo._classifiers import update_average

NUM_TIMESTEPS = 1000
STEPS, BATCH, LEARNING_RATE, WARMUP, EMA, DROPOUT = 4000, 64, 1.5e-3, 200, 0.9985, 0.1
SCHEDULE = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
}


def train(seed: int) -> UNet2DModel:
    """The averaged weights at the end of a fixed number of steps; nothing is chosen on any split."""
    torch.manual_seed(seed)
    pool, targets = digits.foundation()
    images_NCHW = torch.from_numpy(pool).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels_N = torch.from_numpy(targets)
    model = _network()
    average = deepcopy(model).eval()
    noising = DDPMScheduler(**SCHEDULE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
    )
    for step in range(STEPS):
        rows = torch.randperm(len(images_NCHW))[:BATCH]
        clean_BCHW, noise_BCHW = images_NCHW[rows], torch.randn(BATCH, *images_NCHW.shape[1:])
        # One stratum of the time axis an image: the loss's variance over t, its largest part, is gone.
        times_B = ((torch.randperm(BATCH) + torch.rand(BATCH)) * (NUM_TIMESTEPS / BATCH)).long()
        noisy_BCHW = noising.add_noise(clean_BCHW, noise_BCHW, times_B)
        wanted_BCHW = noising.get_velocity(clean_BCHW, noise_BCHW, times_B)
        drawn_BCHW = model.train()(noisy_BCHW, times_B, class_labels=labels_N[rows]).sample
        loss = F.mse_loss(drawn_BCHW, wanted_BCHW)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        update_average(average, model, min(EMA, (step + 1) / (step + 10)))
        if step % 200 == 0:
            print(f"generator: step {step}/{STEPS}, loss {loss.item():.4f}", flush=True)
    return average


def save(model: UNet2DModel, folder: Path) -> None:
    """diffusers' folder format, weights in fp16; `model` itself is left in half precision."""
    sampler = DPMSolverMultistepScheduler(**SCHEDULE, algorithm_type="dpmsolver++", timestep_spacing="trailing")
    pipeline = ConsistencyModelPipeline(unet=model.half(), scheduler=sampler)
    pipeline.save_pretrained(folder, safe_serialization=True)


def _network() -> UNet2DModel:
    """1.0 M parameters: two resolutions (8 and 4 pixels), attention at the lower one."""
    return UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=10,
        dropout=DROPOUT,
    )
