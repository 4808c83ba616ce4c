"""Which of a run's synthetic images are copies of training images: reads the images, asks copies.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from variegate.copies import SIZE_PX, Calibration, Nearness, calibrate, nearness
from variegate.images import load_squares
from variegate.progress import Reporter
from variegate.recipe import DatasetSection
from variegate.records import RealImage, SyntheticImage, seed_from
from variegate.store import RunFolder

_SLICE = 512  # images in memory at a time


@dataclass(frozen=True, slots=True)
class Copies:
    """How near images are to training images, in the images' order, and which of them count as copies."""

    calibration: Calibration
    near: Nearness
    train: tuple[RealImage, ...]  # what near.nearest indexes
    distance: np.ndarray  # float64 [N], to the nearest training image that an image may be a copy of

    def are_copies(self, below: float | None = None) -> np.ndarray:
        """bool [N]: nearer than the calibrated threshold, or than `below`."""
        return self.distance < (self.calibration.threshold if below is None else below)


def units_of(folder: RunFolder, images: Sequence[RealImage]) -> list[str]:
    """What counts as one independent image: its group where groups are kept apart by the splits, else itself."""
    done = folder.stage("dataset")  # a meadow's groups are habitats, which every species shares
    by_group = done is None or done[1].get("groups_split", True)
    return [image.group if by_group and image.group else image.id for image in images]


def find_copies(
    folder: RunFolder,
    section: DatasetSection,
    images: Sequence[SyntheticImage],
    reporter: Reporter,
    *,
    seed: int,
    of_sources: bool = True,
) -> Copies:
    """Compare synthetic images with all training images.

    An image that is nearly its own source again counts as a copy too, unless `of_sources` is false or refine gave it parts of
    its source on purpose.
    """
    train = tuple(folder.real_images("train"))
    real = load_squares([Path(image.path) for image in train], SIZE_PX, section.fit, section.max_megapixels)
    place = {image.id: index for index, image in enumerate(train)}
    parts = []
    with reporter.bar("looking for copies", len(images)) as bar:
        calibration = calibrate(real, units_of(folder, train), seed=seed_from(seed, "copies"))
        for first in range(0, len(images), _SLICE):
            some = images[first : first + _SLICE]
            paths = [folder.path(image.path) for image in some]
            pixels = load_squares(paths, SIZE_PX, section.fit, section.max_megapixels)
            parts.append(nearness(pixels, real, [place.get(image.source or "", -1) for image in some]))
            bar.advance(len(some))
    names = ("source", "other", "nearest")
    near = Nearness(*(np.concatenate([getattr(part, name) for part in parts] or [np.empty(0)]) for name in names))
    counts = np.array([of_sources and not image.original_share for image in images], bool)
    distance = np.where(counts, np.minimum(near.source, near.other), near.other)
    return Copies(calibration, near, train, distance)
