"""What refining would take, before anything is written: a few made-up images go through the recipe's operations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from variegate.backends.base import resolve_backend
from variegate.images import encode_image
from variegate.recipe import Recipe
from variegate.records import ClassInfo
from variegate.stages.refine.batch import Batch
from variegate.stages.refine.operations import open_operations, refine

MEASURED_IMAGES = 8


def estimate(recipe: Recipe, classes: Sequence[ClassInfo], num_images: int, *, measure: bool = True) -> dict[str, Any]:
    """Seconds for `num_images`, from a few in memory; nothing where nothing is refined or `measure` is false.

    Encoders are loaded. Raises ModelError.
    """
    if not recipe.refine or not num_images or not measure:
        return {}
    start = time.monotonic()
    spec = resolve_backend(recipe.backend)
    operations = open_operations(recipe.refine, classes, device=spec.device, dtype=spec.dtype)
    opened = time.monotonic() - start
    pixels = np.random.default_rng(0).integers(0, 256, (2, MEASURED_IMAGES, *[spec.size_px] * 2, 3), dtype=np.uint8)
    drawn, originals = pixels
    targets, ids = [0] * MEASURED_IMAGES, [str(number) for number in range(MEASURED_IMAGES)]

    def work() -> None:
        batch = Batch.of(drawn, None if recipe.generate.method.endswith("-gen") else originals, targets)
        for image in refine(operations, batch, ids).pixels:
            encode_image(image)

    work()  # the first call sets up kernels and fractals' tables
    start = time.monotonic()
    work()
    seconds = opened + (time.monotonic() - start) / MEASURED_IMAGES * num_images
    return {"seconds": {"refine": round(seconds, 1)}}
