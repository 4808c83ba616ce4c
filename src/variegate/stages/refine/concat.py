"""Original and drawn image half and half, with a seam: DiffuseMix's hybrid image (arXiv 2405.14881). Pure.

The released mask is right at even sizes from 20 px only; this one at any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from variegate.recipe import ConcatStep
from variegate.stages.refine.batch import Batch, with_original

Orientation = Literal["horizontal", "vertical"]


def concat(step: ConcatStep, batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
    height, width = batch.pixels.shape[1:3]
    masks = []
    for rng in rngs:
        is_vertical, is_first = rng.random(2) < 0.5  # always two draws: one key does not move the other's
        orientation = (
            ("vertical" if is_vertical else "horizontal") if step.orientation == "random" else step.orientation
        )
        edge = height if orientation == "vertical" else width
        seam_px = step.seam * edge if step.seam_px is None else step.seam_px
        original_first = bool(is_first) or step.first == "original"
        masks.append(concat_mask(height, width, orientation, seam_px=seam_px, original_first=original_first))
    return with_original(batch, np.stack(masks))


def concat_mask(
    height: int, width: int, orientation: Orientation, *, seam_px: float, original_first: bool = True
) -> np.ndarray:
    """The original's weight: float32 [height, width], 1 on its half, falling linearly over `seam_px` in the middle.

    horizontal: side by side; vertical: one above the other. With no seam an odd edge's middle line is half of each.
    The mean is one half, whatever the size and the seam.
    """
    edge = height if orientation == "vertical" else width
    start = np.arange(edge, dtype=np.float64)
    # The ramp's mean over each pixel: exact for hard edges, odd sizes and seams of any width.
    low, high = (edge - seam_px) / 2.0, (edge + seam_px) / 2.0
    line = _area_under_ramp(start + 1.0, low, high) - _area_under_ramp(start, low, high)
    line = (line if original_first else line[::-1]).astype(np.float32)
    return np.broadcast_to(line[:, None] if orientation == "vertical" else line[None, :], (height, width)).copy()


def _area_under_ramp(upto: np.ndarray, low: float, high: float) -> np.ndarray:
    """Integral from 0 of a function that is 1 up to `low`, falls linearly and is 0 from `high` on."""
    if high <= low:
        return np.minimum(upto, low)
    inside = np.clip(upto, low, high) - low
    return np.minimum(upto, low) + inside - inside**2 / (2.0 * (high - low))
