"""Copies of training images are found however they were passed on; other images are let be."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from variegate.copies import HONEST, SIZE_PX, Calibration, alter, calibrate, count_copies, nearness
from variegate.stages.dataset.meadow import make_meadow


def pictures(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 64, 64, 3]: smooth random pictures, each like no other."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)) for one in small]
    )


def butterflies(draw: int, per_species: int = 4) -> np.ndarray:
    return make_meadow(n_species=8, n_per_species=per_species, size_px=SIZE_PX, draw=draw).images


def names(count: int) -> list[str]:
    return [str(k) for k in range(count)]


def jpeg(pixels: np.ndarray, quality: int = 60) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def cropped(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels[3:61, 1:59]).resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))


PASSED_ON = {
    "as it is": lambda one: one,
    "mirrored": lambda one: np.ascontiguousarray(one[:, ::-1]),
    "as a JPEG": jpeg,
    "cropped": cropped,
    "lighter": lambda one: np.clip(one * 1.1 + 8.0, 0, 255).astype(np.uint8),
    "darker": lambda one: (one * 0.9 - 0.0).astype(np.uint8),
    "cropped, mirrored, darker, as a JPEG": lambda one: jpeg((cropped(one)[:, ::-1] * 0.9).astype(np.uint8)),
}


@pytest.fixture(scope="module")
def meadow() -> tuple[np.ndarray, Calibration]:
    """32 training images, and what is a copy of one of them."""
    real = butterflies(draw=0)
    return real, calibrate(real, names(len(real)), seed=0)


@pytest.mark.parametrize("how", PASSED_ON)
def test_every_planted_copy_is_found(how: str, meadow: tuple[np.ndarray, Calibration]) -> None:
    real, calibration = meadow
    copies = np.stack([PASSED_ON[how](one) for one in real])
    found = nearness(copies, real)
    assert (found.other < calibration.threshold).all(), np.sort(found.other)[-5:]
    assert found.nearest.tolist() == list(range(len(real)))


def test_other_pictures_of_the_same_species_are_no_copies(meadow: tuple[np.ndarray, Calibration]) -> None:
    """Pictures of the same 8 species that are not among the training images: more than 300, at most 2 % taken for copies."""
    (real, calibration), fresh = meadow, butterflies(draw=1, per_species=40)
    is_new = np.array([not (real == one).all(axis=(1, 2, 3)).any() for one in fresh])
    assert is_new.sum() >= 300
    assert calibration.is_sharp
    assert (nearness(fresh[is_new], real).other < calibration.threshold).mean() <= HONEST


def test_an_image_near_its_source_is_told_apart_from_one_near_another() -> None:
    real = pictures(12, seed=0)
    drawn = np.stack(
        [alter(real[3], np.random.default_rng(0)), alter(real[5], np.random.default_rng(1)), *pictures(1, 9)]
    )
    found = nearness(drawn, real, sources=[3, 4, 6])
    threshold = calibrate(real, names(12), seed=0).threshold
    assert (found.source < threshold).tolist() == [True, False, False]
    assert (found.other < threshold).tolist() == [False, True, False]
    assert found.nearest[1] == 5


def test_shots_of_one_animal_are_not_the_floor() -> None:
    """Two nearly equal shots of each animal: without groups hardly anything may be called a copy, with them it is sharp."""
    animals = pictures(10, seed=1)
    rng = np.random.default_rng(2)
    real = np.concatenate([animals, np.stack([alter(one, rng) for one in animals])])
    alone, by_animal = (calibrate(real, groups, seed=0) for groups in (names(20), names(10) * 2))
    assert np.median(alone.apart) < 0.02 < 0.2 < by_animal.apart.min()
    assert not alone.is_sharp and by_animal.is_sharp
    assert nearness(real, real).other.max() < by_animal.threshold


def test_fewer_images_than_candidates_and_pictures_of_one_colour() -> None:
    real, grey = pictures(2, seed=3), np.full((1, SIZE_PX, SIZE_PX, 3), 128, np.uint8)
    found = nearness(np.concatenate([grey, real[:1]]), np.concatenate([real, grey]))
    assert found.other[0] == pytest.approx(1.0) and found.other[1] == pytest.approx(0.0, abs=1e-5)
    assert np.isinf(nearness(grey, real[:1], sources=[0]).other).all()
    assert calibrate(real[:1], ["a"], seed=0).apart.size == 0
    assert nearness(grey[:0], real).source.size == 0


def test_previews_that_are_copies_are_counted() -> None:
    real, fresh = pictures(6, seed=0), pictures(2, seed=1)
    rng = np.random.default_rng(0)
    noisy = np.clip(real[:1].astype(int) + rng.integers(-6, 7, real[:1].shape), 0, 255).astype(np.uint8)
    drawn = np.concatenate([fresh, noisy, real[3:4, :, ::-1]])
    assert count_copies(drawn, real, calibrate(real, names(6), seed=0)) == 2
    assert count_copies(fresh, real[:1], calibrate(real[:1], ["a"], seed=0)) == 0
    assert count_copies(fresh[:0], real, calibrate(real, names(6), seed=0)) == 0


def test_the_same_images_give_the_same_calibration() -> None:
    one, two = (calibrate(pictures(6, seed=0), names(6), seed=3) for _ in range(2))
    assert one.threshold == two.threshold and (one.altered == two.altered).all()
