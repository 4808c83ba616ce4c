"""What follows from scores: keep, drop or weigh each synthetic image, with a reason that is true.

Pure. A dropped image stays on disk and in the records. Weights follow DIAGen (arXiv 2408.14584): w = min(1, 2 c).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from variegate.stages.curate.scores import BLANK_BELOW

BLANK, OFF_CLASS, COPY = "blank", "off-class", "copy"


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one synthetic image; `reason` is empty for one that is kept whole."""

    id: str
    action: Literal["keep", "drop"] = "keep"
    weight: float = 1.0
    reason: str = ""


def drop_blank(decisions: Sequence[Decision], spread: Mapping[str, float]) -> list[Decision]:
    """Drop images on which nothing is to be seen."""
    return [_drop(d, BLANK) if d.action == "keep" and spread[d.id] < BLANK_BELOW else d for d in decisions]


def drop_copies(decisions: Sequence[Decision], distance: Mapping[str, float], below: float) -> list[Decision]:
    """Drop every image nearer than `below` to a training image; a class of copies alone keeps none."""
    return [_drop(d, COPY) if d.action == "keep" and distance[d.id] < below else d for d in decisions]


def weigh_copies(decisions: Sequence[Decision], distance: Mapping[str, float], below: float) -> list[Decision]:
    """Weigh an image down by how much nearer than `below` it is to a training image: w = distance / below."""
    return [
        replace(d, weight=d.weight * max(distance[d.id], 0.0) / below, reason=COPY)
        if d.action == "keep" and distance[d.id] < below
        else d
        for d in decisions
    ]


def weigh_by_agreement(decisions: Sequence[Decision], agreement: Mapping[str, float]) -> list[Decision]:
    """Weigh an image down as its agreement c falls below one half: w = min(1, 2 c)."""
    weighed = []
    for decision in decisions:
        weight = min(1.0, 2.0 * agreement[decision.id])
        if decision.action == "keep" and weight < 1.0:
            decision = replace(decision, weight=decision.weight * weight, reason=OFF_CLASS)
        weighed.append(decision)
    return weighed


def drop_off_class(
    decisions: Sequence[Decision],
    agreement: Mapping[str, float],
    targets: Mapping[str, int],
    *,
    below: float | None = None,
    fraction: float | None = None,
) -> list[Decision]:
    """Drop images with agreement under `below`, and the lowest `fraction` of each class; a class keeps its best.

    Counts only images that are still kept. Ties are broken by id, so that equal runs decide equally.
    """
    by_class: dict[int, list[Decision]] = {}
    for decision in decisions:
        if decision.action == "keep":
            by_class.setdefault(targets[decision.id], []).append(decision)
    doomed: set[str] = set()
    for members in by_class.values():
        ranked = sorted(members, key=lambda d: (agreement[d.id], d.id))
        count = math.floor(len(ranked) * fraction + 1e-9) if fraction is not None else 0
        chosen = {d.id for d in ranked[:count]}
        if below is not None:
            chosen |= {d.id for d in ranked if agreement[d.id] < below}
        doomed |= chosen - {ranked[-1].id}
    return [_drop(d, OFF_CLASS) if d.id in doomed else d for d in decisions]


def _drop(decision: Decision, reason: str) -> Decision:
    return Decision(decision.id, "drop", 0.0, reason)
