"""The starter's autoencoder: 64 px pictures to 4 x 16 x 16 latents and back.

L1 on pixels and on their differences keeps edges sharp; half-size latents must decode to half-size pictures
(EQ-VAE, arXiv 2502.09509), which makes latents smooth and the diffusion model's work easier.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from starter.data import Pictures
from starter.training import (
    Budget,
    learning_rate,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
    set_learning_rate,
)

LATENT_CHANNELS = 4
CHANNELS = (32, 64, 96)
PEAK_RATE = 1e-3
BATCH = 16  # small: more steps in the same time
HALF_SIZE_FRACTION = 0.25  # of the steps also decode half-size latents
DIFFERENCE_WEIGHT = 0.5
KL_WEIGHT = 1e-6
NUM_HELD_OUT = 512
MIRROR_UP_TO = 50_000  # a larger data set is seen too few times for mirrors to matter
MAX_ENCODED = 60_000  # two hours on two cores see each of these about four times
SAVE_EVERY_S = 120


def build_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    pictures: Pictures, work: Path, *, minutes: float, device: str, seed: int, init: Path | None
) -> AutoencoderKL:
    """Train until the budget is spent; continues from `work/autoencoder.safetensors` when there is one."""
    torch.manual_seed(seed)
    model = AutoencoderKL.from_pretrained(init, subfolder="vae") if init else build_autoencoder()
    model = model.float().to(device).train()  # group norms make channels-last slower here
    optimizer = torch.optim.AdamW(model.parameters(), PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    checkpoint, step, spent_s = work / "autoencoder.safetensors", 0, 0.0
    if checkpoint.exists():
        parts, facts = load_checkpoint(checkpoint)
        model.load_state_dict(parts["model"])
        step, spent_s = facts["step"], facts["spent_s"]
        if "optimizer" in parts:
            restore_optimizer(optimizer, parts["optimizer"])
    budget, saved_s = Budget(minutes, spent_s), spent_s
    peak = PEAK_RATE * (0.25 if init else 1)
    train_images = pictures.images[:-NUM_HELD_OUT]
    while budget.fraction < 1:
        rng = np.random.default_rng([seed, 1, step])
        batch = as_tensor(train_images[rng.integers(len(train_images), size=BATCH)], device)
        set_learning_rate(optimizer, learning_rate(peak, step, budget.fraction))
        loss = _step(model, optimizer, batch, also_half_size=rng.random() < HALF_SIZE_FRACTION)
        step += 1
        if step % 100 == 0:
            quality = f"loss {loss:.4f}, PSNR {psnr(model, pictures, device):.2f} dB"
            print(f"autoencoder: step {step}, {budget.spent_s / 60:.1f} min, {quality}", flush=True)
        if budget.spent_s - saved_s > SAVE_EVERY_S:
            saved_s = budget.spent_s
            save_checkpoint(checkpoint, {"model": model.state_dict()}, optimizer, {"step": step, "spent_s": saved_s})
    facts = {"step": step, "spent_s": budget.spent_s, "psnr_db": psnr(model, pictures, device)}
    save_checkpoint(checkpoint, {"model": model.state_dict()}, optimizer, facts)
    print(f"autoencoder: done, {facts}", flush=True)
    return model.eval()


def _step(
    model: AutoencoderKL, optimizer: torch.optim.Optimizer, batch: torch.Tensor, *, also_half_size: bool
) -> float:
    with torch.autocast(batch.device.type, torch.bfloat16):
        posterior = model.encode(batch).latent_dist
        latents = posterior.sample()
        loss = picture_loss(model.decode(latents).sample, batch)
        if also_half_size:
            small = F.avg_pool2d(latents, 2)
            loss = loss + 0.25 * picture_loss(model.decode(small).sample, F.avg_pool2d(batch, 2))
    loss = loss + KL_WEIGHT * posterior.kl().mean()
    _descend(optimizer, loss, model.parameters())
    return loss.item()


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: Iterable[torch.nn.Parameter]) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def picture_loss(drawn: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """L1 of pixels and of neighbour differences, plus a squared term that PSNR counts."""
    error = (drawn - wanted).float()
    across, down = error.diff(dim=-1).abs().mean(), error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + DIFFERENCE_WEIGHT * (across + down)


@torch.no_grad()
def psnr(model: AutoencoderKL, pictures: Pictures, device: str, num_images: int = 128) -> float:
    """Mean over held-out pictures, dB, of encode-decode in the [0, 1] range."""
    batch = as_tensor(pictures.images[-NUM_HELD_OUT:][:num_images], device)
    with torch.autocast(device, torch.bfloat16):
        drawn = model.decode(model.encode(batch).latent_dist.mode()).sample
    error = ((drawn.float().clamp(-1, 1) - batch) / 2).square().mean((1, 2, 3))
    return float((-10 * error.log10()).mean())


def polish_decoder(
    model: AutoencoderKL,
    pictures: Pictures,
    latents: torch.Tensor,
    work: Path,
    *,
    minutes: float,
    device: str,
    seed: int,
) -> AutoencoderKL:
    """Train the decoder alone on cached latents (`latents` [n, 4, h, w], not scaled): the U-Net's work stays valid.

    Continues from `work/decoder.safetensors`.
    """
    model = model.float().to(device).train().requires_grad_(False)
    trained = [
        *model.decoder.requires_grad_(True).parameters(),
        *model.post_quant_conv.requires_grad_(True).parameters(),
    ]
    optimizer = torch.optim.AdamW(trained, PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    checkpoint, step, spent_s = work / "decoder.safetensors", 0, 0.0
    if checkpoint.exists():
        parts, facts = load_checkpoint(checkpoint)
        model.load_state_dict(parts["model"])
        restore_optimizer(optimizer, parts["optimizer"])
        step, spent_s = facts["step"], facts["spent_s"]
    budget, saved_s = Budget(minutes, spent_s), spent_s
    while budget.fraction < 1:
        chosen = np.random.default_rng([seed, 6, step]).integers(len(latents), size=BATCH)
        set_learning_rate(optimizer, learning_rate(PEAK_RATE, step, budget.fraction))
        with torch.autocast(device, torch.bfloat16):
            drawn = model.decode(latents[torch.from_numpy(chosen)].to(device).float()).sample
        loss = picture_loss(drawn, as_tensor(pictures.images[chosen], device))
        _descend(optimizer, loss, trained)
        step += 1
        if step % 200 == 0:
            quality = f"loss {loss.item():.4f}, PSNR {psnr(model, pictures, device):.2f} dB"
            print(f"decoder: step {step}, {budget.spent_s / 60:.1f} min, {quality}", flush=True)
        if budget.spent_s - saved_s > SAVE_EVERY_S or budget.fraction == 1:
            saved_s = budget.spent_s
            save_checkpoint(checkpoint, {"model": model.state_dict()}, optimizer, {"step": step, "spent_s": saved_s})
    print(f"decoder: done, step {step}, PSNR {psnr(model, pictures, device):.2f} dB", flush=True)
    return model.eval()


@torch.no_grad()
def encode_all(model: AutoencoderKL, images: np.ndarray, device: str, batch_size: int = 128) -> torch.Tensor:
    """Posterior means; float16 [N, 4, h, w], or [2 * N, 4, h, w] with the mirror images of a small data set second."""
    latents = []
    for mirror in (False, True) if len(images) <= MIRROR_UP_TO else (False,):
        for start in range(0, len(images), batch_size):
            batch = as_tensor(images[start : start + batch_size], device)
            batch = batch.flip(-1) if mirror else batch
            with torch.autocast(device, torch.bfloat16):
                latents.append(model.encode(batch).latent_dist.mode().to("cpu", torch.float16))
            if len(latents) % 100 == 0:
                print(f"encode: {len(latents) * batch_size} of {len(images)} pictures", flush=True)
    return torch.cat(latents)


def as_tensor(images: np.ndarray, device: str) -> torch.Tensor:
    """uint8 [N, H, W, 3] to float [-1, 1] in [N, 3, H, W]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous().float().div(127.5).sub(1)


@torch.no_grad()
def decode_all(model: AutoencoderKL, latents: torch.Tensor, device: str, batch_size: int = 128) -> np.ndarray:
    """uint8 [N, S, S, 3] of scaled latents [N, 4, h, w]."""
    model = model.to(device).eval()
    images = []
    for batch in latents.split(batch_size):
        with torch.autocast(device, torch.bfloat16):
            drawn = model.decode(batch.to(device).float() / model.config.scaling_factor).sample
        levels = ((drawn.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        images.append(levels.permute(0, 2, 3, 1).cpu().numpy())
    return np.concatenate(images)
