"""The operations by name, opened once and applied in the recipe's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from variegate.recipe import RefineStep
from variegate.records import ClassInfo, seed_from
from variegate.stages.refine.batch import Batch, Operation
from variegate.stages.refine.concat import concat
from variegate.stages.refine.fractal import overlay_fractal
from variegate.stages.refine.hybrid import open_hybrid_blend
from variegate.stages.refine.patches import paste_patches

Opener = Callable[[Any, Sequence[ClassInfo], str, str], Operation]  # (step, classes in label order, device, dtype)


def _needs_nothing(operation: Callable[[Any, Batch, Sequence[np.random.Generator]], Batch]) -> Opener:
    return lambda step, classes, device, dtype: partial(operation, step)


OPERATIONS: dict[str, Opener] = {
    "concat": _needs_nothing(concat),
    "fractal": _needs_nothing(overlay_fractal),
    "patches": _needs_nothing(paste_patches),
    "hybrid-blend": open_hybrid_blend,
}


def open_operations(
    steps: Sequence[RefineStep], classes: Sequence[ClassInfo], *, device: str, dtype: str
) -> list[Operation]:
    """Raises ModelError where an encoder cannot be loaded."""
    return [OPERATIONS[step.op](step, classes, device, dtype) for step in steps]


def refine(operations: Sequence[Operation], batch: Batch, ids: Sequence[str]) -> Batch:
    """Every operation in turn; its chance for an image comes from the image's id and the operation's place."""
    for place, operation in enumerate(operations):
        batch = operation(batch, [np.random.default_rng(seed_from(image_id, "refine", place)) for image_id in ids])
    return batch
