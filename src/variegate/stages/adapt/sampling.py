"""Which images a step learns from, and at which noise levels: pure functions of a seed and the step's number.

Nothing here depends on what happened before, so a restarted run and every process of several see the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from variegate.records import seed_from


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's items, in order; a process or a micro-batch takes a slice."""

    image: np.ndarray  # int64 [B], index into the training images
    view: np.ndarray  # int64 [B], which encoded view: crop * 2 + mirrored
    text: np.ndarray  # int64 [B], which caption of the image
    time: np.ndarray  # int64 [B], timestep
    noise: np.ndarray  # int64 [B], seed of the noise

    def __len__(self) -> int:
        return len(self.image)

    def part(self, start: int, stop: int) -> Batch:
        return Batch(*(column[start:stop] for column in (self.image, self.view, self.text, self.time, self.noise)))


def image_weights(labels: Sequence[int], balance: float) -> np.ndarray:
    """Chance of each image, proportional to 1 / n^balance with n the images of its class; sums to 1.

    >>> image_weights([0, 0, 0, 1], 1.0).round(3).tolist()
    [0.167, 0.167, 0.167, 0.5]
    """
    counts = np.bincount(labels)[np.asarray(labels)]
    weights = counts.astype(np.float64) ** -balance
    return weights / weights.sum()


def sample_batch(
    weights: np.ndarray,
    *,
    size: int,
    num_views: int,
    num_texts: int,
    time_chances: np.ndarray,
    seed: int,
    step: int,
) -> Batch:
    """The batch of one step; `time_chances` [T] sums to 1. Images are picked systematically, times one in each of `size`
    slices of equal chance: less noise in the loss than independent picks."""
    rng = np.random.default_rng(seed_from(seed, "batch", step))
    order = rng.permutation(len(weights))
    image = order[_picked(weights[order], (np.arange(size) + rng.random()) / size)]
    time = _picked(time_chances, (rng.permutation(size) + rng.random(size)) / size)
    return Batch(
        image=image,
        view=rng.integers(num_views, size=size),
        text=rng.integers(num_texts, size=size),
        time=time,
        noise=rng.integers(2**62, size=size),
    )


def _picked(chances: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The index that each place in [0, 1) falls on, when `chances` lie side by side."""
    return np.minimum(np.searchsorted(np.cumsum(chances), places, side="right"), np.flatnonzero(chances)[-1])
