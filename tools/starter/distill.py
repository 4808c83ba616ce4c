"""The one-step starter: a copy of the starter's U-Net taught to jump where the starter walks to.

Knowledge distillation on pairs (arXiv 2101.02388): the starter draws with a deterministic solver and guidance from a noised
latent; the copy learns the picture at the end from that noised latent alone. Four noise levels, the ones of SD-Turbo, so that
a source image can be kept in part. Text encoder and autoencoder stay the starter's, so learned tokens and LoRA fit both.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel

from starter.captions import random_caption
from starter.data import Item
from starter.tokenizer import MAX_TOKENS
from starter.training import Budget, train_on_budget
from starter.unet import Denoiser, averaged, build_scheduler
from variegate.backends.base import one_step_timestep
from variegate.backends.denoise import Denoiser as Solver
from variegate.backends.denoise import Given, Text

LEVELS = (0.25, 0.5, 0.75, 1.0)
LEVEL_SHARES = (0.1, 0.15, 0.2, 0.55)  # from pure noise is the hardest
STEPS, GUIDANCE = 8, 2.0
SHARD_PAIRS = 256
BATCH, PEAK_RATE = 32, 4e-4
HUBER_WIDTH = 0.3  # of the pseudo-Huber loss: less blur than squares (arXiv 2310.14189)
OWN_CAPTION = 0.5  # of the sources; the others are told of another picture, as between-class recipes do


def draw_pairs(
    teacher: Denoiser, latents: torch.Tensor, items: list[Item], work: Path, *, minutes: float, device: str, seed: int
) -> None:
    """Add shards of (noised latent, level, caption, end) to `work/pairs` until the budget is spent."""
    folder = work / "pairs"
    folder.mkdir(parents=True, exist_ok=True)
    solver = _solver(teacher, device)
    budget, number = Budget(minutes), 0
    while budget.fraction < 1:
        path = folder / f"shard-{number:05d}.npz"
        if not path.exists():
            with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
                shard = _draw_shard(solver, teacher, latents, items, [seed, 7, number])
            with (temporary := path.with_suffix(".partial")).open("wb") as file:
                np.savez(file, **shard)
            temporary.replace(path)
            if number % 10 == 9:
                print(f"pairs: {(number + 1) * SHARD_PAIRS} in {budget.spent_s / 60:.1f} min", flush=True)
        number += 1


def load_pairs(work: Path) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, list[str]]:
    """(noised latents [N, 4, h, w], ends [N, 4, h, w], levels [N], captions) of all shards, the latents in half precision."""
    shards = [np.load(path) for path in sorted((work / "pairs").glob("shard-*.npz"))]
    noised, ends = (torch.from_numpy(np.concatenate([shard[name] for shard in shards])) for name in ("noised", "ends"))
    captions = [str(caption) for shard in shards for caption in shard["captions"]]
    return noised, ends, np.concatenate([shard["levels"] for shard in shards]), captions


def train_student(
    student: Denoiser,
    work: Path,
    *,
    minutes: float,
    device: str,
    seed: int,
    preview_every_min: float,
    preview: Callable[[Denoiser, int], None],
) -> Denoiser:
    """Train the U-Net until the budget is spent, from `work/student.safetensors` where it is; averaged weights."""
    noised, ends, levels, captions = load_pairs(work)
    print(f"student: {len(noised)} pairs", flush=True)
    unet = student.unet.float().to(device, memory_format=torch.channels_last).train()
    encoder = student.text_encoder.to(device).eval().requires_grad_(False)
    kept = build_scheduler().alphas_cumprod
    times = torch.tensor([one_step_timestep(float(level)) for level in levels])

    def loss_of(step: int) -> torch.Tensor:
        rng = np.random.default_rng([seed, 8, step])
        chosen, mirrored = (torch.from_numpy(rng.integers(count, size=BATCH)) for count in (len(noised), 2))
        share = kept[times[chosen]].view(-1, 1, 1, 1)
        # no caption tells left from right, so a pair mirrored as a whole is a pair as well
        x, end = (
            torch.where(mirrored.view(-1, 1, 1, 1) == 1, part.flip(3), part)
            for part in (noised[chosen].float(), ends[chosen].float())
        )
        tokens = _tokens(student, [captions[k] for k in chosen.tolist()]).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                words = encoder(tokens).last_hidden_state
            given = x.to(device).contiguous(memory_format=torch.channels_last)
            predicted = unet(given, times[chosen].to(device), words).sample.float().cpu()
        error = (share.sqrt() * x - (1 - share).sqrt() * predicted - end).square()
        return ((error + HUBER_WIDTH**2).sqrt() - HUBER_WIDTH).mean()

    def whole(values: dict[str, torch.Tensor]) -> Denoiser:
        frozen = {f"text_encoder.{name}": value for name, value in encoder.state_dict().items()}
        return averaged(student, {**values, **frozen})

    values = train_on_budget(
        "student",
        torch.nn.ModuleDict({"unet": unet}),
        loss_of,
        work / "student.safetensors",
        batch=BATCH,
        minutes=minutes,
        peak_rate=PEAK_RATE,
        hold=0.0,
        preview_every_min=preview_every_min,
        preview=lambda values, num_images: preview(whole(values), num_images),
    )
    return whole(values)


def _solver(teacher: Denoiser, device: str) -> Solver:
    dtype = torch.bfloat16
    unet = teacher.unet.eval().to(device, dtype, memory_format=torch.channels_last)
    teacher.text_encoder.to(device).eval()
    scheduler = DPMSolverMultistepScheduler.from_config(build_scheduler().config, algorithm_type="dpmsolver++")
    return Solver(unet, scheduler, dtype=dtype, device=torch.device(device), size_px=0)


def _draw_shard(solver: Solver, teacher: Denoiser, latents: torch.Tensor, items: list[Item], seed: list[int]) -> dict:
    """One shard, of one noise level: the solver's steps are then the same for all of it."""
    rng = np.random.default_rng(seed)
    level = float(rng.choice(LEVELS, p=LEVEL_SHARES))
    chosen = rng.integers(len(latents), size=SHARD_PAIRS)
    told = np.where(rng.random(SHARD_PAIRS) < OWN_CAPTION, chosen, rng.integers(len(latents), size=SHARD_PAIRS))
    captions = [random_caption(items[index % len(items)], rng) for index in told]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.randn((SHARD_PAIRS, *latents.shape[1:]), generator=generator)
    sources = latents[torch.from_numpy(chosen)].float()
    texts = Text(teacher.text_encoder(_tokens(teacher, captions).to(solver.device)).last_hidden_state, None)
    empty = Text(teacher.text_encoder(_tokens(teacher, [""]).to(solver.device)).last_hidden_state, None)
    steps = round(STEPS * level)
    ends = solver.many_steps(
        noise, Given(sources if level < 1 else None), texts, empty, [GUIDANCE], total=STEPS, steps=steps, generators=[]
    ).cpu()
    noised = noise
    if level < 1:
        kept = solver.scheduler.alphas_cumprod[one_step_timestep(level)]
        noised = kept.sqrt() * sources + (1 - kept).sqrt() * noise
    return {
        "noised": noised.half().numpy(),
        "ends": ends.half().numpy(),
        "levels": np.full(SHARD_PAIRS, level, np.float32),
        "captions": np.array(captions),
    }


def _tokens(denoiser: Denoiser, captions: list[str]) -> torch.Tensor:
    return denoiser.tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
    ).input_ids
