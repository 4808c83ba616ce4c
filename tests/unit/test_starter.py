"""The starter that ships with the package: stock pipelines load it offline, and it draws what the prompt says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import variegate
from variegate.stages.dataset.meadow import make_meadow

STARTER = Path(variegate.__file__).parent / "backends" / "starter"
MIN_PSNR_DB = 26  # 26.3 when it was trained; it varies by a decibel with the species


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(STARTER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: StableDiffusionPipeline, prompts: list[str]) -> np.ndarray:
    generators = [torch.Generator().manual_seed(k) for k in range(len(prompts))]
    with torch.autocast("cpu", torch.bfloat16):
        drawn = pipeline(prompts, num_inference_steps=12, guidance_scale=4.0, generator=generators, output_type="np")
    return drawn.images * 255


def test_weights_take_at_most_30_mb_and_are_all_safetensors():
    files = [path for path in STARTER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert not [path.name for path in files if path.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_nothing_in_the_folder_names_the_machine_it_was_made_on():
    for path in STARTER.rglob("*.json"):
        assert "_name_or_path" not in json.loads(path.read_text())


def test_stock_pipelines_draw_64_px_pictures(pipeline):
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    picture = pipeline("a photo of a butterfly", num_inference_steps=2).images[0]
    assert picture.size == (64, 64)
    assert other("a butterfly", image=picture, strength=0.5, num_inference_steps=4).images[0].size == (64, 64)


def test_unseen_pictures_survive_the_autoencoder(pipeline):
    images = np.concatenate([make_meadow(12, 2, seed=seed, split="test").images for seed in (11, 12, 13)])
    batch = torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    with torch.no_grad():
        latents = pipeline.vae.encode(batch).latent_dist.mode()
        back = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    error = ((back - batch) / 2).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) >= MIN_PSNR_DB
    assert 0.8 < float((latents * pipeline.vae.config.scaling_factor).std()) < 1.25  # what the scheduler expects


def test_the_colour_asked_for_is_the_colour_drawn(pipeline):
    prompts = [f"a photo of a {colour} butterfly on stone" for colour in ("blue", "orange") for _ in range(6)]
    middles = draw(pipeline, prompts)[:, 16:48, 16:48].reshape(2, -1, 3)
    blue, orange = (pixels[:, 2].mean() - pixels[:, 0].mean() for pixels in middles)  # blue minus red
    assert blue > orange + 40


def test_the_place_asked_for_is_the_place_drawn(pipeline):
    prompts = [f"a photo of a white butterfly {place}" for place in ("on grass", "on petals") for _ in range(4)]
    corners = draw(pipeline, prompts)[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(2, -1, 3).mean(1)
    grass, petals = corners
    assert grass[1] > grass[0]  # more green than red
    assert petals[0] > petals[1] + 40  # the other way round


def test_same_seed_same_picture(pipeline):
    prompts = ["a photo of a red butterfly on sand"] * 2
    assert np.array_equal(draw(pipeline, prompts), draw(pipeline, prompts))


@pytest.mark.parametrize(
    "text", ["a photo of a 🦋", "ein Schmetterling, größer", "蝶 on sand", "Ornithoptera alexandrae"]
)
def test_any_text_has_tokens_and_comes_back(pipeline, text):
    tokens = pipeline.tokenizer(text).input_ids
    assert len(tokens) <= pipeline.tokenizer.model_max_length == 48
    assert pipeline.tokenizer.unk_token_id not in tokens[1:-1]
    spoken = pipeline.tokenizer.decode(tokens, skip_special_tokens=True)
    assert spoken.replace(" ", "") == text.lower().replace(" ", "")


def test_every_meadow_caption_fits(pipeline):
    captions = make_meadow(60, 1, 32, seed=2).captions
    assert max(len(tokens) for tokens in pipeline.tokenizer(list(captions)).input_ids) <= 48
