"""Fractals: a seed gives its picture, pictures show something, and wrong wishes are refused."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.fractals import KINDS, VARIATIONS, Kind, draw_fractals, is_nearly_blank


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_its_picture_whatever_is_drawn_beside_it(kind: Kind) -> None:
    together = draw_fractals([3, 1, 4, 15, 92], 32, [kind])
    assert (together[2] == draw_fractals([4], 32, [kind])[0]).all()
    assert (together == draw_fractals([3, 1, 4, 15, 92], 32, [kind])).all()
    assert len({picture.tobytes() for picture in together}) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_no_picture_is_nearly_blank_and_colours_vary(kind: Kind) -> None:
    pictures = draw_fractals(range(100, 130), 32, [kind])
    grey = pictures.astype(float).mean(axis=3)
    assert grey.std(axis=(1, 2)).min() > 10
    means = pictures.reshape(30, -1, 3).mean(axis=1)
    assert (means.std(axis=0) > 15).all(), "palettes should differ from picture to picture"


def test_what_counts_as_nearly_blank() -> None:
    black = np.zeros((32, 32, 3), np.uint8)
    dot = black.copy()
    dot[10:14, 10:14] = 255
    faint = np.random.default_rng(0).integers(120, 130, (32, 32, 3), dtype=np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert is_nearly_blank(np.stack([black, black + 255, dot, faint, noise])).tolist() == [True] * 4 + [False]


def test_kinds_are_dealt_by_the_seed() -> None:
    mixed = draw_fractals(range(12), 16)
    alone = {kind: draw_fractals(range(12), 16, [kind]) for kind in KINDS}
    found = [next((kind for kind in KINDS if (alone[kind][i] == mixed[i]).all()), "") for i in range(12)]
    assert set(found) - {""} == set(KINDS)


def test_variations_keep_points_finite_at_the_origin_and_far_away() -> None:
    x = np.array([0.0, 1e-9, 1e3, -1e3], np.float32)
    for name, bend in VARIATIONS.items():
        assert all(np.isfinite(axis).all() for axis in bend(x, x[::-1])), name


def test_wrong_kinds_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="should be some of ifs, flame, julia"):
        draw_fractals([0], 32, ["fern"])
    with pytest.raises(ValueError, match="at least 8"):
        draw_fractals([0], 4)
    assert draw_fractals([], 16).shape == (0, 16, 16, 3)
