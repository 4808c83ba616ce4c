"""Masks that the drawing model finds: they lie on the object, are made once, and nothing is needed from the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from variegate.backends.base import resolve_backend
from variegate.backends.diffusion import DiffusionBackend
from variegate.recipe import BackendSection
from variegate.stages.dataset.meadow import make_meadow
from variegate.stages.generate.class_masks import FOUND, object_mask, otsu_threshold, separability


def overlap(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Intersection over union of bool [N, S, S]."""
    return (found & true).sum((1, 2)) / (found | true).sum((1, 2))


def test_the_starter_finds_the_butterflies_of_a_meadow() -> None:
    """Species that it has never seen, told their descriptions and habitats; colours make of the difference a better mask."""
    meadow = make_meadow(n_species=10, n_per_species=2, seed=4)
    told = list(meadow.captions)
    around = [text.rsplit(", ", 1)[1] for text in told]
    with DiffusionBackend.open(resolve_backend(BackendSection(model="starter"))) as backend:
        differences = backend.differences(meadow.images, told, around)
    assert differences.shape == (20, 16, 16) and differences.dtype == np.float32
    found = [object_mask(*pair) for pair in zip(differences, meadow.images, strict=True)]
    grey = np.full_like(meadow.images, 128)
    coarse = [object_mask(*pair) for pair in zip(differences, grey, strict=True)]
    shares = overlap(np.stack(found), meadow.masks)
    assert shares.mean() > 0.7 and shares.min() > 0.5
    assert shares.mean() > overlap(np.stack(coarse), meadow.masks).mean() + 0.05
    assert np.median([separability(one) for one in differences]) > FOUND


def test_what_both_prompts_say_leaves_no_difference(tiny_sd: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    spec = resolve_backend(BackendSection(model=str(tiny_sd)))
    with DiffusionBackend.open(spec) as backend:
        same = backend.differences(pixels, ["a cat"] * 3, ["a cat"] * 3)
        seen: list[int] = []
        other = backend.differences(pixels, ["a cat"] * 3, [""] * 3, batch=2, advance=seen.append)
        alone = backend.differences(pixels[2:], ["a cat"], [""])
    assert not same.any() and (other > 0).all() and seen == [2, 1]
    assert np.allclose(other[2:], alone, rtol=0.1), "an image does not depend on its batch"


@pytest.mark.parametrize("edge", [64, 200])
def test_colours_find_the_edge_that_the_difference_only_hints_at(edge: int) -> None:
    """A green disc before sand, of a size that is no multiple of the difference's cells."""
    y, x = np.mgrid[0:edge, 0:edge] / edge
    disc = (x - 0.42) ** 2 + (y - 0.55) ** 2 < 0.06
    rng = np.random.default_rng(0)
    colours = np.where(disc[..., None], (40, 150, 60), (200, 180, 130)) + rng.normal(0, 12, (edge, edge, 3))
    coarse = 0.2 + np.exp(-(((np.mgrid[0:8, 0:8] + 0.5) / 8 - np.array([0.55, 0.42])[:, None, None]) ** 2).sum(0) * 12)
    found = object_mask(coarse.astype(np.float32), np.clip(colours, 0, 255).astype(np.uint8))
    assert found.shape == (edge, edge) and found.dtype == bool
    assert overlap(found[None], disc[None])[0] > 0.9


def test_a_picture_of_one_colour_is_split_by_the_difference_alone() -> None:
    coarse = np.full((8, 8), 0.1, np.float32)
    coarse[2:5, 3:6] = 1.0
    found = object_mask(coarse, np.full((32, 32, 3), 128, np.uint8))
    assert found[8:20, 12:24].mean() > 0.7 and found.mean() < 0.3


def test_a_frame_all_around_leaves_something_to_repaint() -> None:
    coarse = np.full((8, 8), 1.0, np.float32)
    coarse[2:6, 2:6] = 0.1
    found = object_mask(coarse, np.full((32, 32, 3), 128, np.uint8))
    assert found[:4].all() and not found[12:20, 12:20].any()


def test_a_threshold_lies_between_two_groups_whatever_their_scale() -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(2, 0.3, 900), rng.normal(5, 0.3, 100)])
    assert 2.9 < otsu_threshold(values) < 4.1
    assert otsu_threshold(1000 * values) == pytest.approx(1000 * otsu_threshold(values), rel=0.02)


def test_separability_tells_two_parts_from_a_bell_whatever_their_scale() -> None:
    rng = np.random.default_rng(1)
    bell = np.exp(rng.normal(0, 0.5, (64, 64)))
    parts = np.where(rng.random((64, 64)) < 0.3, 4.0, 1.0) * np.exp(rng.normal(0, 0.2, (64, 64)))
    assert separability(bell) == pytest.approx(2 / np.pi, abs=0.03)
    assert separability(parts) > 0.9 and separability(1e-3 * parts) == pytest.approx(separability(parts))
    assert separability(np.zeros((8, 8))) == separability(np.ones((8, 8))) == 0.0
