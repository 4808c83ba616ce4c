"""What flows through refine's operations: pictures, and how much of each pixel is the original's. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one size; operations make new ones of it."""

    pixels: np.ndarray  # uint8 [N, H, W, 3]
    original_share: np.ndarray  # float32 [N, H, W] in [0, 1]: 1 = the pixel is the original's
    originals: np.ndarray | None  # uint8 [N, H, W, 3]; None where images were drawn from text
    targets: tuple[int, ...]  # labels drawn

    @classmethod
    def of(cls, drawn: np.ndarray, originals: np.ndarray | None, targets: Sequence[int]) -> Batch:
        """Images as they were drawn: nothing of them is the original's."""
        return cls(drawn, np.zeros(drawn.shape[:3], np.float32), originals, tuple(targets))

    @property
    def shares(self) -> list[float]:
        """The original's share of each picture, to six digits."""
        return [round(float(share), 6) for share in self.original_share.mean(axis=(1, 2), dtype=np.float64)]


Operation = Callable[[Batch, Sequence[np.random.Generator]], Batch]  # one generator for each image


def with_original(batch: Batch, mask: np.ndarray) -> Batch:
    """The original laid over the pictures, mask * original + (1 - mask) * picture; mask: float32 [N, H, W] in [0, 1]."""
    if batch.originals is None:
        raise ValueError("the batch has no originals; its images were drawn from text")
    pixels = mix(batch.pixels, batch.originals, mask[..., None])
    return replace(batch, pixels=pixels, original_share=mask + (1.0 - mask) * batch.original_share)


def mix(below: np.ndarray, above: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """(1 - weight) * below + weight * above, rounded: uint8 [N, ...] in and out; weight float32 [N, ...] broadcasts.

    One image at a time: a chunk may hold hundreds of large ones, and floats take twelve times their room.
    """
    mixed = np.empty_like(below)
    for out, low, high, share in zip(mixed, below, above, weight, strict=True):
        out[:] = ((1.0 - share) * low.astype(np.float32) + share * high.astype(np.float32)).round()
    return mixed
