"""Look at what the starter draws: prompt grids and img2img strength grids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from variegate.stages.dataset.meadow import HABITAT_PHRASES, describe, make_meadow

STEPS, GUIDANCE = 20, 4.0
STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FREE_PROMPTS = (
    "a photo of a blue butterfly on sand",
    "a photo of an orange and black butterfly on leaves",
    "a red butterfly over water",
    "a photo of a white butterfly in the sky",
    "a photo of a butterfly with pointed yellow forewings, tailed black hindwings, three red spots on hindwings,"
    " on stone",
    "a photo of a butterfly with rounded violet forewings, round violet hindwings, wide white margins,"
    " two yellow eyespots on forewings, on grass",
)
GAP_PX = 4


def unseen_prompts(num: int, seed: int = 1) -> list[str]:
    """Captions of meadow species, which the starter was never trained on, one habitat after the other."""
    places = list(HABITAT_PHRASES.values())
    species = make_meadow(n_species=num * 3, n_per_species=1, size_px=32, seed=seed).species[::3]
    return [f"{describe(one)}, {places[k % len(places)]}" for k, one in enumerate(species)]


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> np.ndarray:
    """One picture per prompt, uint8 [N, H, W, 3]; picture k has noise of its own, fixed by `seed` and k."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(1000 * seed + k) for k in range(len(prompts))]
    drawn = pipeline(
        prompts, num_inference_steps=steps, guidance_scale=guidance, generator=generators, output_type="np"
    ).images
    return (drawn * 255 + 0.5).astype(np.uint8)


def prompt_grid(pipeline: StableDiffusionPipeline, prompts: list[str], columns: int, **settings) -> Image.Image:
    """One row per prompt."""
    drawn = draw(pipeline, [prompt for prompt in prompts for _ in range(columns)], **settings)
    return grid(drawn.reshape(len(prompts), columns, *drawn.shape[1:]))


def strength_grid(
    pipeline: StableDiffusionPipeline, num: int, *, seed: int = 1, steps: int = STEPS, guidance: float = GUIDANCE
) -> Image.Image:
    """One row per meadow picture: the picture, then img2img of it at each of STRENGTHS with its own caption."""
    meadow = make_meadow(n_species=num * 3, n_per_species=1, size_px=64, seed=seed, split="test")
    sources, captions = meadow.images[::3], list(meadow.captions[::3])
    columns = [sources]
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    pictures = torch.from_numpy(sources.copy()).permute(0, 3, 1, 2).float().div(255)
    for strength in STRENGTHS:
        generators = [torch.Generator().manual_seed(k) for k in range(num)]
        drawn = other(
            captions, image=pictures, strength=strength, num_inference_steps=steps, guidance_scale=guidance,
            generator=generators, output_type="np",
        ).images  # fmt: skip
        columns.append((drawn * 255 + 0.5).astype(np.uint8))
    return grid(np.stack(columns, axis=1))


def meadow_banner(columns: int = 9, size_px: int = 96) -> Image.Image:
    """Species of different genera above, the same species in another picture below; few colours, so the file is small."""
    meadow = make_meadow(n_species=6 * columns, n_per_species=2, size_px=size_px)
    genera = list(dict.fromkeys(one.genus for one in meadow.species))[:columns]
    chosen = [next(k for k, one in enumerate(meadow.species) if one.genus == genus) for genus in genera]
    pictures = np.stack([meadow.images[meadow.labels == label] for label in chosen], axis=1)  # [2, columns, H, W, 3]
    return grid(pictures).quantize(255, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG)


def grid(pictures: np.ndarray, scale: int = 1) -> Image.Image:
    """[row, column, H, W, 3] uint8 to one picture with white gaps."""
    rows, columns, height, width, _ = pictures.shape
    sheet = np.full((rows * (height + GAP_PX) - GAP_PX, columns * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + GAP_PX), column * (width + GAP_PX)
            sheet[top : top + height, left : left + width] = pictures[row, column]
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS) if scale > 1 else image


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **({"quality": 88, "method": 6} if path.suffix == ".webp" else {"optimize": True}))
