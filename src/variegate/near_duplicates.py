"""Images that are nearly the same: resized, re-encoded, mirrored. Pure: looks in, pairs out.

A look is the picture in 16 x 16 greys. Two images are near duplicates where their looks, mirrored or not, correlate by more than
SAME; copies of training images among drawn ones, which may be cropped too, are copies.py's business.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

EDGE = 16
SAME = 0.995
MAX_PAIRS = 2 * 10**10  # comparisons that are made at all: some minutes
_BLOCK = 2048


def look_of(image: Image.Image) -> bytes:
    """The look of an RGB picture of any shape, uint8 [EDGE * EDGE] as bytes."""
    return image.convert("L").resize((EDGE, EDGE), Image.Resampling.BILINEAR).tobytes()


def looks_of(squares: np.ndarray) -> list[bytes]:
    """Looks of uint8 [N, S, S, 3]."""
    return [look_of(Image.fromarray(one)) for one in squares]


def near_pairs(ones: Sequence[bytes], others: Sequence[bytes]) -> list[tuple[int, int]]:
    """(index into ones, index of its nearest in others) of every image that has a near duplicate there, in order.

    An empty look is like none, nor is a picture of one grey. Raises ValueError above MAX_PAIRS comparisons.
    """
    if len(ones) * len(others) > MAX_PAIRS:
        raise ValueError(f"{len(ones):,} x {len(others):,} images are too many to compare")
    if not ones or not others:
        return []
    known = _unit(others, mirror=False)
    pairs = []
    for first in range(0, len(ones), _BLOCK):
        part = ones[first : first + _BLOCK]
        likeness = np.maximum(_unit(part, mirror=False) @ known.T, _unit(part, mirror=True) @ known.T)
        best = likeness.argmax(axis=1)
        found = np.flatnonzero(likeness[np.arange(len(part)), best] > SAME)
        pairs += [(first + int(k), int(best[k])) for k in found]
    return pairs


def _unit(looks: Sequence[bytes], *, mirror: bool) -> np.ndarray:
    """float32 [N, EDGE * EDGE], each about its mean and of length 1; all zeros for one without contrast."""
    blank = bytes(EDGE * EDGE)
    greys = np.frombuffer(b"".join(look or blank for look in looks), np.uint8).reshape(-1, EDGE, EDGE)
    flat = (greys[:, :, ::-1] if mirror else greys).reshape(len(greys), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return flat / np.where(length > EDGE, length, np.inf)  # a standard deviation above one grey level
