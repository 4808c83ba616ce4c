"""Dense features: the last block without its attention, at any number of places, of every kind of tower named in the module."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import CLIP_CONFIG, clip_folder, transformers_clip_folder  # noqa: F401 - fixtures
from torch import nn
from torch.nn.functional import linear

from variegate.errors import ModelError
from variegate.image_text import Clip, dense_problems, open_clip_model
from variegate.stages.dataset.meadow import make_meadow
from variegate.stages.refine.hybrid import dense_maps

LEVELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)).astype(np.float32))


def opened(folder: Path, **options: str) -> Clip:
    return open_clip_model(f"clip:{folder}", "here", is_dense=True, **options)


def unit(features: torch.Tensor) -> np.ndarray:
    return nn.functional.normalize(features, dim=-1).numpy()


def without_attention(
    x: torch.Tensor, norm1: nn.Module, values: nn.Linear, out: nn.Module, mlp: Callable
) -> torch.Tensor:
    """MaskCLIP's last block: values in attention's place, everything else as it was."""
    x = x + out(values(norm1(x)))
    return x + mlp(x)


def saved(folder: Path, vision: dict) -> nn.Module:
    """An open_clip model with such an image tower, and its folder."""
    import open_clip
    from safetensors.torch import save_file

    config = {**CLIP_CONFIG, "vision_cfg": vision}
    model = open_clip.CLIP(**config).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return model


@torch.inference_mode()
def test_a_transformers_vit_is_maskclips(transformers_clip_folder: Path) -> None:  # noqa: F811
    from transformers import CLIPModel

    clip, model = opened(transformers_clip_folder), CLIPModel.from_pretrained(transformers_clip_folder).eval()
    last = model.vision_model.encoder.layers[-1]
    x = model.vision_model(clip._scaled(LEVELS), output_hidden_states=True).hidden_states[-2]
    x = without_attention(
        x, last.layer_norm1, last.self_attn.v_proj, last.self_attn.out_proj, lambda x: last.mlp(last.layer_norm2(x))
    )
    expected = model.visual_projection(model.vision_model.post_layernorm(x[:, 1:])).reshape(2, 4, 4, 16)
    assert clip.place_features(LEVELS).numpy() == pytest.approx(unit(expected), abs=1e-5)


@torch.inference_mode()
def test_an_open_clip_vit_is_maskclips(clip_folder: Path) -> None:  # noqa: F811
    import open_clip

    clip, model = opened(clip_folder), open_clip.create_model(f"local-dir:{clip_folder}").eval()
    visual, last = model.visual, model.visual.transformer.resblocks[-1]
    x = visual._embeds(clip._scaled(LEVELS))
    for block in visual.transformer.resblocks[:-1]:
        x = block(x)
    weight, bias = (part.chunk(3)[2] for part in (last.attn.in_proj_weight, last.attn.in_proj_bias))
    x = without_attention(
        x, last.ln_1, lambda x: linear(x, weight, bias), last.attn.out_proj, lambda x: last.mlp(last.ln_2(x))
    )
    expected = (visual.ln_post(x[:, 1:]) @ visual.proj).reshape(2, 4, 4, 16)
    assert clip.place_features(LEVELS).numpy() == pytest.approx(unit(expected), abs=1e-5)


@torch.inference_mode()
def test_a_convolutional_towers_places_are_what_its_feature_is_the_mean_of() -> None:
    clip = open_clip_model("clip:starter", "here", is_dense=True)
    levels = torch.nn.functional.interpolate(LEVELS, size=(128, 128))
    assert clip.dense is not None
    places = clip.dense.encode(clip._scaled(levels))
    assert places.shape == (2, 4, 4, 128)
    assert unit(places.mean(dim=(1, 2))) == pytest.approx(clip.image_features(levels).numpy(), abs=1e-5)


@torch.inference_mode()
def test_open_clips_resnet_goes_through_its_pools_value_layers(tmp_path: Path) -> None:
    model = saved(tmp_path, {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None})
    clip = opened(tmp_path)
    levels = torch.nn.functional.interpolate(LEVELS, size=(64, 96))
    places = clip.place_features(levels)
    assert places.shape == (2, 2, 3, 16)
    pool, x = model.visual.attnpool, model.visual.stem(clip._scaled(levels))
    for number in range(1, 5):
        x = getattr(model.visual, f"layer{number}")(x)
    assert places[1, 1, 2].numpy() == pytest.approx(unit(pool.c_proj(pool.v_proj(x[1, :, 1, 2]))), abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["clip_folder", "transformers_clip_folder"])
def test_any_number_of_places(kind: str, dtype: str, request: pytest.FixtureRequest) -> None:
    clip = opened(request.getfixturevalue(kind), dtype=dtype)
    assert clip.dense is not None and clip.dense.place_px == 8
    found = clip.place_features(torch.nn.functional.interpolate(LEVELS, size=(48, 72)))
    assert found.shape == (2, 6, 9, 16) and found.dtype == torch.float32 and bool(found.isfinite().all())
    assert found.norm(dim=-1).numpy() == pytest.approx(1.0, abs=1e-3)


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["clip_folder", "transformers_clip_folder"])
def test_every_place_gets_the_position_of_where_it_lies(kind: str, request: pytest.FixtureRequest) -> None:
    """With pictures of one colour nothing but its position tells a place from others: 4 x 4 learned ones, spread over 4 x 12."""
    clip = opened(request.getfixturevalue(kind))
    grey = torch.full((1, 3, 32, 32), 90.0)
    square, wide = (clip.place_features(torch.nn.functional.interpolate(grey, size=(32, edge)))[0] for edge in (32, 96))
    assert wide.shape == (4, 12, 16)
    near = torch.einsum("rcd,rkd->rck", wide, square).argmax(
        dim=2
    )  # of the four columns, the one that a place is most like
    assert (near == torch.arange(12) // 3).float().mean() > 0.75


def test_where_a_butterfly_is() -> None:
    """The package's own pair, on pictures whose every pixel is known to be butterfly or not: chance is 0.5."""
    meadow = make_meadow(n_per_species=2, seed=3, split="val")
    clip = open_clip_model("clip:starter", "here", is_dense=True)
    texts = clip.text_features([f"a photo of a {meadow.descriptions[label]}" for label in meadow.labels]).numpy()
    maps = dense_maps(meadow.images, texts, clip, stride=0.0625)
    assert maps.shape == meadow.masks.shape and maps.dtype == np.float32
    ahead = [_ranked_right(map_, mask) for map_, mask in zip(maps, meadow.masks, strict=True)]
    assert np.mean(ahead) > 0.65


def _ranked_right(values: np.ndarray, mask: np.ndarray) -> float:
    """How often a pixel of the mask has a higher value than one outside."""
    ranks = values.ravel().argsort().argsort().reshape(values.shape)
    inside, outside = int(mask.sum()), int((~mask).sum())
    return float((ranks[mask].sum() - inside * (inside - 1) / 2) / (inside * outside))


def test_images_of_any_shape_have_maps(clip_folder: Path) -> None:  # noqa: F811
    clip = opened(clip_folder)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 30, 45, 3), dtype=np.uint8)
    texts = np.tile(clip.text_features(["a photo of a cat"]).numpy(), (9, 1))
    together = dense_maps(pixels, texts, clip, stride=0.25)
    assert together.shape == (9, 30, 45)
    assert dense_maps(pixels[8:], texts[8:], clip, stride=0.25)[0] == pytest.approx(together[8], abs=1e-4)


def test_a_tower_without_dense_features_is_named_before_anything_is_loaded(tmp_path: Path, clip_folder: Path) -> None:  # noqa: F811
    for known in (str(clip_folder), "starter", "ViT-B-32/openai", "RN50/openai"):
        assert dense_problems(f"clip:{known}", "here") == []
    (problem,) = dense_problems("clip:convnext_base/laion400m_s13b_b51k", "here")
    assert "here: clip:convnext_base/laion400m_s13b_b51k has an image tower without dense features" in str(problem)
    saved(tmp_path, {**CLIP_CONFIG["vision_cfg"], "attentional_pool": True})
    assert len(dense_problems(f"clip:{tmp_path}", "here")) == 1
    with pytest.raises(ModelError, match="set the operation's map: patches"):
        opened(tmp_path)
