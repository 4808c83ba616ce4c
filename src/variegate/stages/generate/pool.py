"""The prompts that can be dealt, as one table: [class or image, text, environment] -> prompt.

Pure; reads the lines of prompts/prompts.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from variegate.records import ClassInfo, RealImage


@dataclass(frozen=True, slots=True)
class PromptPool:
    """`table` indexes `texts`; its first axis runs over classes, or over training images where prompts hold captions."""

    texts: tuple[str, ...]
    table: np.ndarray  # int32 [class or image, text, environment]
    per_image: bool


def parse_pool(lines: Iterable[str], classes: Sequence[ClassInfo], images: Sequence[RealImage]) -> PromptPool:
    """Read prompt lines (label, image, text, environment, prompt); `images` in the order the plan uses."""
    rows = [json.loads(line) for line in lines]
    per_image = bool(rows) and rows[0]["image"] is not None
    keys = [image.id for image in images] if per_image else [info.label for info in classes]
    position = {key: index for index, key in enumerate(keys)}
    num_texts = 1 + max((row["text"] for row in rows), default=0)
    num_environments = 1 + max((row["environment"] or 0 for row in rows), default=0)
    texts: dict[str, int] = {}
    table = np.zeros((len(keys), num_texts, num_environments), np.int32)
    for row in rows:
        number = texts.setdefault(row["prompt"], len(texts))
        place = slice(None) if row["environment"] is None else row["environment"]
        table[position[row["image"] if per_image else row["label"]], row["text"], place] = number
    return PromptPool(tuple(texts), table, per_image)


def pool_of_names(classes: Sequence[ClassInfo]) -> PromptPool:
    """One prompt a class, for estimates made before prompts are rendered."""
    texts = tuple(dict.fromkeys(info.name for info in classes))
    table = np.array([texts.index(info.name) for info in classes], np.int32).reshape(-1, 1, 1)
    return PromptPool(texts, table, per_image=False)
