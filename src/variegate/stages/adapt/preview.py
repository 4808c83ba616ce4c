"""The preview grid: the same prompts and seeds every time, one column a class, rows of different noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from variegate.images import encode_image
from variegate.records import seed_from
from variegate.stages.adapt.trainee import Trainee

CLASSES, ROWS = 10, 3
GAP_PX = 2
TELLING = 0.25  # of what the judge makes of real images, above chance: below it previews do not show their class (docs/log.md)


@dataclass(frozen=True, slots=True)
class PreviewPlan:
    """What is drawn: `labels` [columns] and their prompts [columns][rows]."""

    labels: tuple[int, ...]
    prompts: tuple[tuple[str, ...], ...]
    seed: int

    def seeds(self) -> list[int]:
        """One a row: a row compares classes on the same noise."""
        return [seed_from(self.seed, "preview", row) for row in range(ROWS)]


def plan_preview(captions: Sequence[Sequence[str]], labels: Sequence[int], seed: int) -> PreviewPlan:
    """Up to ten classes, evenly picked; each drawn from captions of its own training images."""
    present = sorted(set(labels))
    picked = [present[round(k)] for k in np.linspace(0, len(present) - 1, min(CLASSES, len(present)))]
    prompts = []
    for label in picked:
        own = [text for texts, other in zip(captions, labels, strict=True) if other == label for text in texts]
        prompts.append(tuple(own[row % len(own)] for row in range(ROWS)))
    return PreviewPlan(tuple(picked), tuple(prompts), seed)


def draw_preview(trainee: Trainee, plan: PreviewPlan) -> np.ndarray:
    """uint8 [columns, rows, S, S, 3]."""
    prompts = [prompt for column in plan.prompts for prompt in column]
    seeds = plan.seeds() * len(plan.prompts)
    pixels = trainee.draw(prompts, seeds)
    return pixels.reshape(len(plan.prompts), ROWS, *pixels.shape[1:])


def preview_warnings(scores: Mapping[str, Any], num_classes: int) -> list[str]:
    """What an adapter's `scores` say against drawing with it.

    >>> preview_warnings({"preview_agreement": 0.35, "judge_accuracy": 0.46}, 10)
    []
    >>> preview_warnings({"preview_agreement": 0.11, "judge_accuracy": 0.82}, 10)[0].split(":")[0]
    'previews show their class hardly better than chance (11 % sure, chance 10 %, real images 82 %)'
    """
    found, chance = [], 1.0 / num_classes
    copies, sure, right = (scores.get(key) for key in ("preview_copies", "preview_agreement", "judge_accuracy"))
    if copies:
        count = scores.get("preview_images")
        found.append(f"{copies} of {count} previews are nearly copies of training images: fewer adapt.steps may do")
    if sure is not None and right is not None and sure - chance < TELLING * (right - chance):
        numbers = f"{100 * sure:.0f} % sure, chance {100 * chance:.0f} %, real images {100 * right:.0f} %"
        text = "images drawn with this adapter hardly show their label, and mixing such in has seldom gained anything"
        remedy = "use a model that knows such images, or more adapt.steps"
        found.append(f"previews show their class hardly better than chance ({numbers}): {text}; {remedy}")
    return found


def sheet(pixels: np.ndarray) -> bytes:
    """The grid as PNG, classes across, rows down."""
    columns, rows, edge = pixels.shape[:3]
    pitch = edge + GAP_PX
    page = np.full((rows * pitch - GAP_PX, columns * pitch - GAP_PX, 3), 255, np.uint8)
    for column in range(columns):
        for row in range(rows):
            page[row * pitch : row * pitch + edge, column * pitch : column * pitch + edge] = pixels[column, row]
    return encode_image(page, "png")
