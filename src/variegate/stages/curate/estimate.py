"""What teaching juries would take, before anything is written; other judges are quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from variegate.classifier.fit import choose_compute
from variegate.classifier.timing import step_seconds
from variegate.encoders import CLASSIFIER
from variegate.recipe import Recipe
from variegate.stages.curate.jury import JURORS, num_steps


def estimate(recipe: Recipe, counts: Sequence[int], num_images: int, *, measure: bool = True) -> dict[str, Any]:
    """Seconds of all juries that would be asked of `num_images`; nothing without one. `counts`: training images of each class."""
    asked = [step for step in recipe.curate if step.encoder == CLASSIFIER and min(counts) >= step.min_images]
    if not asked or not num_images or not measure:
        return {}
    compute = choose_compute(recipe.backend.device)
    each = step_seconds(recipe.train, len(counts), recipe.dataset.size_px, compute) * num_steps(recipe, sum(counts))
    return {"seconds": {"curate": round(len(asked) * JURORS * each, 1)}}
