"""Several views of each image, for a judge's mean opinion. Pure: pixels in, pixels out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from variegate.images import resize_square
from variegate.records import seed_from

CROP_SHARE = (0.75, 1.0)  # of the edge


def views_of(pixels: np.ndarray, ids: Sequence[str], count: int, seed: int) -> Iterator[np.ndarray]:
    """uint8 [N, S, S, 3] as it is, then `count` - 1 times a random window of each, mirrored by chance.

    An image's windows depend on its id and the seed alone.
    """
    yield pixels
    for number in range(1, count):
        yield np.stack([_window(square, one, number, seed) for square, one in zip(pixels, ids, strict=True)])


def _window(square: np.ndarray, image_id: str, number: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed_from(seed, "view", image_id, number))
    side = round(len(square) * rng.uniform(*CROP_SHARE))
    top, left = rng.integers(0, len(square) - side + 1, 2)
    window = square[top : top + side, left : left + side]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    return resize_square(np.ascontiguousarray(window), len(square))
