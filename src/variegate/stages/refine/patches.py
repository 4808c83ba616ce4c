"""Rectangles of the drawn image pasted into the original, with the coverage that was asked for. Pure.

gdl_term's rule: 1 to 5 patches of random shares, aspect 1:2 to 2:1, no overlap. Its clipping and its failed placements
leave 0.35 of 0.5 on average; here the last patch takes what is missing, and a layout that does not fit is drawn again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import uniform_filter

from variegate.recipe import PatchesStep
from variegate.stages.refine.batch import Batch, with_original

MIN_SHARE = 0.05  # of the image that a patch has at least, where the coverage allows it
ASPECT = 2.0  # the longer edge over the shorter one, at most
LAYOUTS = 20  # tried with one number of patches before one patch fewer is tried


def paste_patches(step: PatchesStep, batch: Batch, rngs: Sequence[np.random.Generator]) -> Batch:
    height, width = batch.pixels.shape[1:3]
    drawn = np.stack([patch_mask(height, width, rng, coverage=step.coverage, most=step.max_patches) for rng in rngs])
    if step.softness:
        blur_px = 2 * round(step.softness * min(height, width) / 2.0) + 1
        # Mirrored at the border, a mean filter moves weight and loses none: the coverage stays.
        drawn = uniform_filter(drawn, size=(0, blur_px, blur_px), mode="reflect").clip(0.0, 1.0)
    return with_original(batch, 1.0 - drawn)


def patch_mask(height: int, width: int, rng: np.random.Generator, *, coverage: float, most: int) -> np.ndarray:
    """Where the drawn image shows: float32 [height, width] of 0 and 1, mean `coverage` to within half a patch's edge.

    1 to `most` patches, equally likely as far as they fit; a high coverage leaves room for few. Raises ValueError
    where not even one patch of an allowed aspect has the area (images far from square).
    """
    wanted = round(coverage * height * width)
    allowed = max(1, min(most, int(coverage / MIN_SHARE)))
    for count in range(int(rng.integers(1, allowed + 1)), 0, -1):
        for _ in range(LAYOUTS):
            mask = _layout(height, width, rng, wanted, count)
            if mask is not None:
                return mask
    raise ValueError(f"no patch of aspect up to {ASPECT:g} covers {coverage:.0%} of {height} x {width} px")


def _layout(height: int, width: int, rng: np.random.Generator, wanted: int, count: int) -> np.ndarray | None:
    """One try: areas, aspects, then places among all that are free; None when a patch fits nowhere."""
    least = min(MIN_SHARE * height * width, wanted / count)
    areas = np.sort(least + rng.dirichlet(np.ones(count)) * (wanted - count * least))[::-1]
    taken = np.zeros((height, width), bool)
    for index, area in enumerate(areas):
        if index == count - 1:
            area = wanted - int(taken.sum())  # also what rounding left over
        shape = _shape(float(area), height, width, rng)
        free = _free_corners(taken, *shape) if shape else np.empty((0, 2), np.int64)
        if not shape or not len(free):
            return None
        top, left = free[rng.integers(len(free))]
        taken[top : top + shape[0], left : left + shape[1]] = True
    return taken.astype(np.float32)


def _shape(area: float, height: int, width: int, rng: np.random.Generator) -> tuple[int, int] | None:
    """(rows, columns) with the area and a random allowed aspect that fits into the image; None if there is none."""
    low, high = max(1.0 / ASPECT, area / height**2), min(ASPECT, width**2 / area) if area > 0 else 0.0
    if low > high:
        return None
    aspect = float(np.exp(rng.uniform(np.log(low), np.log(high))))  # width over height; wide and tall equally likely
    rows = min(height, max(1, round((area / aspect) ** 0.5)))
    columns = min(width, max(1, round(area / rows)))
    return rows, columns


def _free_corners(taken: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Every (top, left) at which a patch overlaps nothing: int64 [places, 2]."""
    height, width = taken.shape
    sums = np.zeros((height + 1, width + 1), np.int64)  # summed-area table
    sums[1:, 1:] = taken.cumsum(axis=0).cumsum(axis=1)
    covered = sums[rows:, columns:] - sums[:-rows, columns:] - sums[rows:, :-columns] + sums[:-rows, :-columns]
    return np.argwhere(covered == 0)
