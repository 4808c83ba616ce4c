"""What of a source is repainted: the data's mask of the object, grown, or everything around it.

DA-Fusion (arXiv 2302.07944) grows masks by a maximum filter of window 16 at 512 px and calls it a radius: 8 px on each side.
Here `generate.mask_grow` is what is added on each side, or taken off where it is negative. As there, it is the object's mask that
grows, also where the background is repainted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from variegate.errors import DataError, Problem
from variegate.files import file_sha256
from variegate.images import Fit, grow_mask, load_mask
from variegate.recipe import Recipe
from variegate.records import ClassInfo, RealImage, content_id

FOLDER = "masks"  # of a run: those that the drawing model found
MASK_REMEDY = (
    "give a table with a mask column (white: the object), or set generate.mask_from=model or generate.mask=none"
)
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Masking:
    """How masks are read; `size_px` and `fit` as the sources are."""

    part: str  # object, background
    grow: float
    size_px: int
    fit: Fit
    max_megapixels: float
    square: bool = False  # whether masks are squares as drawn, not of their pictures' shape

    def repainted(self, image: RealImage) -> np.ndarray:
        """bool [size_px, size_px]: where the image is repainted. Raises UnreadableImage."""
        shape = (image.width, image.height) if image.width and not self.square else None
        found = load_mask(Path(str(image.mask)), self.size_px, self.fit, self.max_megapixels, shape=shape)
        grown = grow_mask(found, round(self.grow * self.size_px))
        return grown if self.part == "object" else ~grown

    def keys(self, images: Sequence[RealImage]) -> list[str]:
        """A hash for each image of what is repainted of it: the mask's bytes and what is made of them."""
        refuse_unmasked(images)
        return [content_id(self.part, self.grow, file_sha256(Path(str(image.mask)))) for image in images]

    def check(self, images: Sequence[RealImage]) -> None:
        """Raise DataError for masks that leave nothing to repaint, or nothing to keep: such a row is no inpainting."""
        shares = [float(self.repainted(image).mean()) for image in images]
        trivial = [image for image, share in zip(images, shares, strict=True) if share in (0.0, 1.0)]
        _refuse(f"have masks that are all black or all white at {self.size_px} px", trivial, len(images))


def masking_of(recipe: Recipe, size_px: int) -> Masking | None:
    """How a recipe's masks are read at `size_px`; None where it draws without."""
    section, dataset = recipe.generate, recipe.dataset
    if section.mask == "none":
        return None
    by_model = section.mask_from == "model"
    return Masking(section.mask, section.mask_grow, size_px, dataset.fit, dataset.max_megapixels, square=by_model)


def found_mask_path(info: ClassInfo, image_id: str) -> str:
    """Where the mask lies that the drawing model found for a real image, relative to the run folder."""
    return f"{FOLDER}/{info.slug}/{image_id}.png"


def refuse_unmasked(images: Sequence[RealImage]) -> None:
    _refuse("have no mask", [image for image in images if not image.mask], len(images))


def _refuse(what: str, images: Sequence[RealImage], total: int) -> None:
    if images:
        shown = ", ".join(Path(image.path).name for image in images[:SHOWN])
        text = f"{len(images):,} of {total:,} training images {what}: {shown}"
        raise DataError(Problem("generate.mask", text, MASK_REMEDY))
