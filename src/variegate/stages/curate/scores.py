"""How much there is to see in an image. Pure: pixels in, numbers out; what follows from a number is select.py's business."""

from __future__ import annotations

import numpy as np

BLANK_BELOW = 8 / 255  # spread under which nothing is to be seen: JPEG noise on one colour stays below 5 / 255
_TRIM = 0.005  # share of the darkest and of the brightest pixels that may be anything: specks, a border line


def blank_scores(pixels: np.ndarray) -> np.ndarray:
    """How far apart an image's dark and bright pixels are: uint8 [N, H, W, 3] to float32 [N] in [0, 1].

    Largest over the colour channels, without the extreme 0.5 % of pixels at either end. Below BLANK_BELOW an image is
    blank: black, white, one colour, or flat but for noise nobody sees. Fog and noise stay well above. (DiffuseMix's
    released check tested the histogram's bin 255, so that white counted as black and black passed.)

    >>> float(blank_scores(np.zeros((1, 8, 8, 3), np.uint8))[0])
    0.0
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3:
        raise ValueError(f"pixels should be uint8 [N, H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    count = pixels.shape[1] * pixels.shape[2]
    flat = np.sort(pixels.reshape(len(pixels), count, 3), axis=1, kind="stable")  # stable is a radix sort on bytes
    cut = int(count * _TRIM)
    spread = flat[:, count - 1 - cut].astype(np.float32) - flat[:, cut].astype(np.float32)
    return spread.max(axis=1) / 255.0 if len(pixels) else np.empty(0, np.float32)
