"""Each operation does what its recipe keys promise, at any size; the originals' faults are named and absent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from variegate.fractals import draw_fractals
from variegate.image_text import Clip
from variegate.recipe import ConcatStep, FractalStep, HybridBlendStep, PatchesStep
from variegate.records import ClassInfo, soft_label
from variegate.stages.refine.batch import Batch
from variegate.stages.refine.concat import concat, concat_mask
from variegate.stages.refine.fractal import overlay_fractal
from variegate.stages.refine.hybrid import class_text, hybrid_blend, original_masks, patch_maps, patch_starts
from variegate.stages.refine.operations import OPERATIONS, refine
from variegate.stages.refine.patches import paste_patches, patch_mask

DRAWN, ORIGINAL = 10, 210  # grey levels


def batch_of(count: int = 4, size_px: int = 24) -> Batch:
    drawn = np.full((count, size_px, size_px, 3), DRAWN, np.uint8)
    return Batch.of(drawn, np.full_like(drawn, ORIGINAL), [0] * count)


def rngs(count: int = 4, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, index]) for index in range(count)]


# ------------------------------------------------------------------------------------------------ concat


@pytest.mark.parametrize("size_px", [16, 18, 33, 64, 255])
@pytest.mark.parametrize("seam_px", [0.0, 1.0, 20.0, 500.0])
@pytest.mark.parametrize("orientation", ["horizontal", "vertical"])
def test_diffusemix_fault_mask_only_for_even_sizes_from_20_px(size_px: int, seam_px: float, orientation: str) -> None:
    mask = concat_mask(size_px, size_px, orientation, seam_px=seam_px)
    line = mask[:, 0] if orientation == "vertical" else mask[0]
    assert mask.shape == (size_px, size_px) and mask.mean() == pytest.approx(0.5, abs=1e-6)
    assert (np.diff(line) <= 1e-7).all() and line + line[::-1] == pytest.approx(1.0, abs=1e-6)
    inside = (line > 0) & (line < 1)
    assert inside.sum() <= seam_px + 2


def test_half_and_half_as_the_keys_say() -> None:
    done = concat(ConcatStep(op="concat", orientation="horizontal", seam=0.0), batch_of(), rngs())
    assert (done.pixels[:, :, :12] == ORIGINAL).all() and (done.pixels[:, :, 12:] == DRAWN).all()
    assert done.shares == [0.5] * 4
    soft = concat(ConcatStep(op="concat", orientation="vertical", seam_px=8), batch_of(), rngs())
    column = soft.pixels[0, :, 0, 0].astype(int)
    assert column[0] == ORIGINAL and column[-1] == DRAWN and len(set(column)) == 10
    both = concat(ConcatStep(op="concat", first="random", seam=0.0), batch_of(40), rngs(40))
    assert {int(picture[0, 0, 0]) for picture in both.pixels} == {DRAWN, ORIGINAL}
    corners = {(int(p[0, -1, 0]), int(p[-1, 0, 0])) for p in both.pixels}
    assert corners == {(DRAWN, ORIGINAL), (ORIGINAL, DRAWN)}, "both orientations should occur"


# ------------------------------------------------------------------------------------------------ fractal


def test_the_weight_is_the_fractals_share_of_every_pixel() -> None:
    step = FractalStep(op="fractal", weight=0.2, kinds=["julia"])
    done = overlay_fractal(step, batch_of(), rngs())
    seed = np.random.default_rng([0, 0])
    assert seed.uniform(0.2, 0.2) == 0.2
    fractal = draw_fractals([int(seed.integers(2**63))], 24, ["julia"])[0]
    assert np.abs(done.pixels[0] - (0.8 * DRAWN + 0.2 * fractal.astype(float))).max() <= 0.51


def test_a_weight_between_two_numbers_differs_from_image_to_image() -> None:
    def spreads(*weight: float) -> np.ndarray:
        done = overlay_fractal(FractalStep(op="fractal", weight=list(weight)), batch_of(12), rngs(12))
        return done.pixels.reshape(12, -1).std(axis=1)

    low, between, high = spreads(0.1), spreads(0.1, 0.9), spreads(0.9)
    assert (low <= between + 1e-6).all() or (low < high).all()
    assert (between / low).std() > 0.3


def test_gdl_term_fault_fractal_weight_used_as_the_label_weight() -> None:
    done = overlay_fractal(FractalStep(op="fractal", weight=0.2), batch_of(), rngs())
    assert done.shares == [0.0] * 4
    before = soft_label(0, 1, 0.5, gamma=0.5)
    assert soft_label(0, 1, 0.5, gamma=0.5, original_share=done.shares[0]) == before
    mixed = replace(batch_of(), original_share=np.full((4, 24, 24), 0.25, np.float32))
    assert overlay_fractal(FractalStep(op="fractal"), mixed, rngs()).shares == [0.25] * 4


# ------------------------------------------------------------------------------------------------ patches


@pytest.mark.parametrize("coverage", [0.1, 0.25, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("size_px", [32, 64])
def test_gdl_term_fault_patches_cover_less_than_promised(coverage: float, size_px: int) -> None:
    masks = [patch_mask(size_px, size_px, np.random.default_rng(seed), coverage=coverage, most=5) for seed in range(60)]
    shares = np.array([mask.mean() for mask in masks])
    assert shares == pytest.approx(coverage, abs=0.5 / size_px + 1e-6)
    assert all(set(np.unique(mask)) == {0.0, 1.0} for mask in masks)


def test_patches_come_in_different_numbers_and_places() -> None:
    from scipy.ndimage import label

    masks = [patch_mask(64, 64, np.random.default_rng(seed), coverage=0.3, most=5) for seed in range(60)]
    assert len({label(mask)[1] for mask in masks}) >= 3
    often = np.mean(masks, axis=0)
    edges = (often[0], often[-1], often[:, 0], often[:, -1])
    assert often[8:-8, 8:-8].min() > 0.05 and often.max() < 0.8 and all(edge.max() > 0 for edge in edges)


def test_soft_patches_keep_the_coverage_and_the_drawn_image_shows_there() -> None:
    hard = paste_patches(PatchesStep(op="patches", coverage=0.4), batch_of(8, 64), rngs(8))
    assert set(np.unique(hard.pixels)) == {DRAWN, ORIGINAL}
    assert hard.shares == pytest.approx([0.6] * 8, abs=0.01)
    soft = paste_patches(PatchesStep(op="patches", coverage=0.4, softness=0.1), batch_of(8, 64), rngs(8))
    assert soft.shares == pytest.approx(hard.shares, abs=1e-4) and len(np.unique(soft.pixels)) > 10


def test_an_image_too_long_for_one_patch_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match="covers 90% of 10 x 100 px"):
        patch_mask(10, 100, np.random.default_rng(0), coverage=0.9, most=5)


# ------------------------------------------------------------------------------------------------ hybrid-blend


def red_clip() -> Clip:
    """Sees how red, green and blue a patch is, and nothing else."""
    zero, one = (0.0,) * 3, (1.0,) * 3
    return Clip(
        size_px=8,
        scale=1.0,
        device="cpu",
        dtype=torch.float32,
        mean=zero,
        std=one,
        encode_image=lambda images: images.mean(dim=(2, 3)) + 1e-3,
        encode_maps=lambda images: [images],
        encode_text=lambda texts: None,
    )


RED = np.array([1.0, 0.0, 0.0], np.float32)


def red_on_blue(size_px: int, count: int = 2) -> np.ndarray:
    """The left third red, the rest blue."""
    pixels = np.zeros((count, size_px, size_px, 3), np.uint8)
    pixels[..., 2] = 200
    pixels[:, :, : size_px // 3] = (220, 0, 0)
    return pixels


@pytest.mark.parametrize("size_px", [16, 32, 33, 64, 256])
def test_gdl_term_fault_one_patch_at_32_px_gives_the_original_back(size_px: int) -> None:
    maps = patch_maps(red_on_blue(size_px, 1), RED[None], red_clip(), patch=0.125, stride=0.0625)
    third = size_px // 3
    assert maps[0, :, : third // 2].min() > 0.9 and maps[0, :, -third:].max() < 0.1
    mask = original_masks(maps, percentile=30.0, sigma_px=0.0, is_binary=True)
    assert 0.3 <= mask.mean() < 0.7
    assert mask[0, :, : third // 2].max() == 0.0, "where the class is, the drawn image stays"


def test_gdl_term_fault_percentile_help_inverted_higher_gives_more_of_the_original() -> None:
    maps = np.random.default_rng(0).normal(size=(3, 32, 32)).astype(np.float32)
    shares = [original_masks(maps, percentile=p, sigma_px=0.0, is_binary=False).mean() for p in (10, 30, 70)]
    assert shares == pytest.approx([0.1, 0.3, 0.7], abs=0.01)


def test_soft_masks_are_soft_and_binary_ones_are_not() -> None:
    step = {"op": "hybrid-blend", "encoder": "clip:x", "smoothing": 0.05}
    batch = Batch.of(red_on_blue(64), np.full((2, 64, 64, 3), ORIGINAL, np.uint8), [0, 0])
    noise = np.random.default_rng(0).integers(0, 30, batch.pixels.shape, dtype=np.uint8)
    batch = replace(batch, pixels=batch.pixels + noise)
    soft, binary = (
        hybrid_blend(HybridBlendStep(**step, mode=mode), red_clip(), RED[None], batch, [])
        for mode in ("soft", "binary")
    )
    assert len(np.unique(soft.original_share)) > 20 and set(np.unique(binary.original_share)) == {0.0, 1.0}
    from_original = binary.original_share == 1.0
    assert (binary.pixels[from_original] == ORIGINAL).all()
    assert (binary.pixels[~from_original] == batch.pixels[~from_original]).all()


def test_an_image_without_contrast_is_left_as_it_was_drawn() -> None:
    step = HybridBlendStep(op="hybrid-blend", encoder="clip:x")
    done = hybrid_blend(step, red_clip(), RED[None], batch_of(1), [])
    assert (done.pixels == DRAWN).all() and done.shares == [0.0]


def test_patches_of_many_images_together_give_what_each_image_alone_gives() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    texts = np.tile(RED, (5, 1))
    together = patch_maps(pixels, texts, red_clip(), patch=0.25, stride=0.125)
    alone = patch_maps(pixels[3:4], texts[:1], red_clip(), patch=0.25, stride=0.125)
    assert together[3] == pytest.approx(alone[0], abs=1e-6)


def test_patches_reach_from_edge_to_edge_at_any_size() -> None:
    for edge in range(16, 70):
        patch_px = max(1, round(edge / 8))
        starts = patch_starts(edge, patch_px, max(1, patch_px // 2))
        assert starts[0] == 0 and starts[-1] == edge - patch_px
        assert np.diff(starts).min() >= 1 and np.diff(starts).max() <= patch_px


def test_gdl_term_fault_underscores_in_the_class_text() -> None:
    assert class_text("a photo of a {name}", ClassInfo(0, "black_grouse", "0000")) == "a photo of a black grouse"
    assert class_text("{description}", ClassInfo(0, "x", "0000", "a red bird")) == "a red bird"


# ------------------------------------------------------------------------------------------------ together


def test_shares_of_operations_in_a_row_add_up_pixel_by_pixel() -> None:
    """Concat gives the left half back, a second one the upper half: three quarters are the original's."""
    first, second = (ConcatStep(op="concat", orientation=way, seam=0.0) for way in ("horizontal", "vertical"))
    operations = [OPERATIONS["concat"](step, (), "cpu", "fp32") for step in (first, second)]
    done = refine(operations, batch_of(), list("abcd"))
    assert done.shares == [0.75] * 4
    assert (done.pixels == ORIGINAL).mean() == 0.75


def test_chance_comes_from_the_images_id_and_the_operations_place() -> None:
    step = ConcatStep(op="concat", first="random")
    operation = OPERATIONS["concat"](step, (), "cpu", "fp32")
    ids = [f"id{index}" for index in range(20)]
    done = refine([operation], batch_of(20), ids)
    turned = refine([operation], batch_of(20), ids[::-1])
    assert (done.pixels == turned.pixels[::-1]).all() and len({p.tobytes() for p in done.pixels}) == 4
    again = refine([operation, operation], batch_of(20), ids)
    assert any(share > 0.6 for share in again.shares), "a second operation should toss anew"


def test_images_from_text_alone_cannot_be_mixed_with_an_original() -> None:
    with pytest.raises(ValueError, match="has no originals"):
        concat(ConcatStep(op="concat"), replace(batch_of(), originals=None), rngs())
