"""The starter's U-Net and text encoder, trained together on cached latents.

v-prediction with min-SNR-5 weights (arXiv 2303.09556): times are drawn as often as their weight says, so that none of
a batch is spent on noise that hardly counts. Errors count most where a picture shows its marks: those are a few places of
the latents, and what tells species apart. Captions drawn anew at every step, moving averages of all weights, and a
learning rate that has run out exactly when the time budget has.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from starter.captions import random_caption
from starter.data import Item
from starter.tokenizer import MAX_TOKENS
from starter.training import train_on_budget

TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS = 192, 3, 6
CHANNELS, HEADS = (64, 128, 192), (2, 4, 6)
BATCH = 32  # small: the time buys more steps, and few steps are what limits it
PEAK_RATE = 8e-4
HOLD_FRACTION = 0.55  # of the budget at the peak rate
SNR_CAP = 5.0
MARK_WEIGHTS = (1.0, 4.0, 12.0)  # of an error where there is no mark, a mark, a spot (data.NO_MARKS, MARKS, SPOTS)


@dataclass(frozen=True)
class Denoiser:
    """What turns noise and words into latents."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def build_denoiser(tokenizer: CLIPTokenizer, sample_size: int) -> Denoiser:
    """Fresh weights; `sample_size` is the latents' edge."""
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        # no attention at the finest level: it would more than halve the speed
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=HEADS,  # diffusers reads this as the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    config = text_config(tokenizer, width=TEXT_WIDTH, layers=TEXT_LAYERS, heads=TEXT_HEADS)
    return Denoiser(unet, CLIPTextModel(config), tokenizer)


def text_config(tokenizer: CLIPTokenizer, *, width: int, layers: int, heads: int) -> CLIPTextConfig:
    """A text tower that reads this tokenizer's words."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train_denoiser(
    denoiser: Denoiser,
    latents: torch.Tensor,
    items: list[Item],
    marks: np.ndarray,
    work: Path,
    *,
    minutes: float,
    peak_rate: float,
    compiled: bool,
    device: str,
    seed: int,
    preview_every_min: float,
    preview: Callable[[Denoiser, int], None],
) -> Denoiser:
    """Train until the budget is spent; `latents` [N or 2 * N, 4, h, w] have unit variance, mirrors second;
    `marks` uint8 [N, h, w].

    `preview` is called with averaged weights and the number of images seen. Continues from `work/unet.safetensors`.
    Returns the averaged weights.
    """
    model = (
        torch.nn.ModuleDict({"unet": denoiser.unet, "text_encoder": denoiser.text_encoder}).float().to(device).train()
    )
    model["unet"].to(memory_format=torch.channels_last)
    if compiled:
        for part in model.values():
            part.compile()
    snr = _signal_to_noise()
    weights = torch.tensor(MARK_WEIGHTS)[torch.from_numpy(marks).long()]
    weights = torch.cat([weights, weights.flip(2)])[: len(latents)]  # [N or 2 * N, h, w]
    values = train_on_budget(
        "unet",
        model,
        lambda step: _loss(model, denoiser.tokenizer, snr, latents, weights, items, [seed, 2, step], device),
        work / "unet.safetensors",
        batch=BATCH,
        minutes=minutes,
        peak_rate=peak_rate,
        hold=HOLD_FRACTION,
        preview_every_min=preview_every_min,
        preview=lambda values, num_images: preview(averaged(denoiser, values), num_images),
    )
    return averaged(denoiser, values)


def averaged(denoiser: Denoiser, values: dict[str, torch.Tensor]) -> Denoiser:
    """A copy of the denoiser that carries the averaged weights, on the CPU."""
    unet, text_encoder = (
        UNet2DConditionModel.from_config(denoiser.unet.config),
        CLIPTextModel(denoiser.text_encoder.config),
    )
    for name, module in (("unet", unet), ("text_encoder", text_encoder)):
        own = {key.removeprefix(f"{name}."): value.cpu() for key, value in values.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own, strict=False)
        module.eval()
    return Denoiser(unet, text_encoder, denoiser.tokenizer)


def _loss(model, tokenizer, snr, latents, weights, items, seed: list[int], device: str) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(latents), size=BATCH)
    captions = [random_caption(items[index % len(items)], rng) for index in chosen]
    tokens = tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
    clean = latents[torch.from_numpy(chosen)].to(device, torch.float32)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn(clean.shape, generator=generator).to(device)
    # one time in each of BATCH slices of equal weight: a batch's loss then says more about the model than about its times
    weight = snr.double().clamp(max=SNR_CAP) / (snr.double() + 1)
    share = (weight.cumsum(0) / weight.sum()).numpy()
    drawn_times = np.searchsorted(share, (np.arange(BATCH) + rng.random(BATCH)) / BATCH).clip(max=len(snr) - 1)
    times = torch.from_numpy(drawn_times)
    signal = (snr[times] / (1 + snr[times])).sqrt()[:, None, None, None].to(device)
    times = times.to(device)
    sigma = (1 - signal**2).sqrt()
    kind = torch.device(device).type
    attention = sdpa_kernel(SDPBackend.MATH) if kind == "cpu" else nullcontext()  # faster for so few tokens
    with torch.autocast(kind, torch.bfloat16), attention:
        words = model["text_encoder"](tokens.to(device)).last_hidden_state
        noisy = (signal * clean + sigma * noise).contiguous(memory_format=torch.channels_last)
        drawn = model["unet"](noisy, times, words).sample
    error = (drawn.float() - (signal * noise - sigma * clean)).square()
    where = weights[torch.from_numpy(chosen)].to(device)[:, None]
    return float(weight.mean()) * (where * error).mean() / where.mean()


def _signal_to_noise() -> torch.Tensor:
    kept = build_scheduler().alphas_cumprod  # ᾱ
    return (kept / (1 - kept)).float()
