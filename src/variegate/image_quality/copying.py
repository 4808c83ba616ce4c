"""Which of a run's synthetic images are copies of training images: reads the images, asks copies.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate.copies import SIZE_PX, Calibration, Nearness, calibrate, nearness
from variegate.images import load_squares
from variegate.progress import Reporter
from variegate.recipe import DatasetSection
from variegate.recipe_file import load_recipe
from variegate.records import RealImage, SyntheticImage, content_id, rounded, seed_from
from variegate.store import RunFolder

COPIES = "copies.json"
MAX_LISTED = 1000  # copies written out
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
    pasted: bool,
    of_sources: bool = True,
) -> Copies:
    """Compare synthetic images with all training images.

    An image that is nearly its own source again counts as a copy too, unless `of_sources` is false or it was given parts of its
    source on purpose, by refine or by `pasted`, the recipe's generate.mask_paste.
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
    counts = np.array([of_sources and not pasted and not image.original_share for image in images], bool)
    distance = np.where(counts, np.minimum(near.source, near.other), near.other)
    return Copies(calibration, near, train, distance)


def copies_of_run(folder: RunFolder, reporter: Reporter) -> dict[str, Any] | None:
    """`copy_facts` of all drawn images of a run, None without any; kept in its copies.json while images and decisions stay."""
    images = folder.synthetic_images(kept_only=False)
    if not images:
        return None
    key = content_id([(image.id, image.action) for image in images])
    path = folder.path(COPIES)
    if path.is_file():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["key"] == key:
            return known
    names, recipe = [info.name for info in folder.classes()], load_recipe(str(folder.root / "recipe.yaml"))
    pasted = recipe.generate.mask_paste
    found = find_copies(folder, recipe.dataset, images, reporter, seed=recipe.seed, pasted=pasted)
    facts = copy_facts(found, images, names)
    facts = {"key": key, **rounded(facts)}
    folder.write(COPIES, json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return facts


def copy_facts(copies: Copies, images: Sequence[SyntheticImage], names: Sequence[str]) -> dict[str, Any]:
    """`copies` of quality.json: how many there are, of what, how near, and the nearest of them one by one."""
    calibration, near = copies.calibration, copies.near
    flagged = copies.are_copies()
    order = sorted(np.flatnonzero(flagged).tolist(), key=lambda k: (copies.distance[k], images[k].id))
    targets = np.array([image.target for image in images])
    per_class = [
        {"class": name, "images": int((targets == k).sum()), "copies": int((flagged & (targets == k)).sum())}
        for k, name in enumerate(names)
    ]
    of_other = near.other < calibration.threshold
    return {
        "threshold": calibration.threshold,
        "is_sharp": calibration.is_sharp,
        "images": len(images),
        "copies": int(flagged.sum()),
        "copies_kept": sum(images[k].action == "keep" for k in order),
        "of_source": int((flagged & ~of_other).sum()),
        "of_other": int((flagged & of_other).sum()),
        "distances": {
            "to_source": _quantiles(near.source),
            "to_other": _quantiles(near.other),
            "altered_copies": _quantiles(calibration.altered),
            "between_training_images": _quantiles(calibration.apart),
        },
        "per_class": per_class,
        "list": [_copy(k, copies, images, bool(of_other[k])) for k in order[:MAX_LISTED]],
    }


def _copy(index: int, copies: Copies, images: Sequence[SyntheticImage], is_other: bool) -> dict[str, Any]:
    image, near = images[index], copies.near
    return {
        "id": image.id,
        "of": copies.train[near.nearest[index]].id if is_other else image.source,
        "is_source": not is_other,
        "distance": near.other[index] if is_other else near.source[index],
        "action": image.action,
    }


def _quantiles(values: np.ndarray) -> dict[str, float] | None:
    """Least, 2 %, median and largest; None without any."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    return dict(
        zip(("least", "low", "median", "largest"), np.quantile(known, [0.0, 0.02, 0.5, 1.0]).tolist(), strict=True)
    )
