"""The prompts that can be dealt, as one table: [class or image, text, environment, style] -> prompt.

Pure; reads the lines of prompts/prompts.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from variegate.records import ClassInfo, RealImage

ABSENT = -1  # in the table


@dataclass(frozen=True, slots=True)
class PromptPool:
    """`table` indexes `texts`; its first axis runs over classes, or over training images where prompts hold captions.

    Classes may have different numbers of texts; what a class does not have is ABSENT.
    """

    texts: tuple[str, ...]
    table: np.ndarray  # int32 [class or image, text, environment, style]
    num_texts: np.ndarray  # int64 [class]
    uses_environment: np.ndarray  # bool [class, text]
    uses_style: np.ndarray  # bool [class, text]
    per_image: bool


def parse_pool(lines: Iterable[str], classes: Sequence[ClassInfo], images: Sequence[RealImage]) -> PromptPool:
    """Read prompt lines (label, image, text, environment, style, prompt); `images` in the order the plan uses."""
    rows = [json.loads(line) for line in lines]
    per_image = bool(rows) and rows[0]["image"] is not None
    keys = [image.id for image in images] if per_image else [info.label for info in classes]
    position = {key: index for index, key in enumerate(keys)}
    shape = [1 + max((row.get(axis) or 0 for row in rows), default=0) for axis in ("text", "environment", "style")]
    texts: dict[str, int] = {}
    table = np.full((len(keys), *shape), ABSENT, np.int32)
    num_texts = np.ones(len(classes), np.int64)
    uses = {axis: np.zeros((len(classes), shape[0]), bool) for axis in ("environment", "style")}
    for row in rows:
        number = texts.setdefault(row["prompt"], len(texts))
        place, look = (slice(None) if row.get(axis) is None else row[axis] for axis in uses)
        table[position[row["image"] if per_image else row["label"]], row["text"], place, look] = number
        num_texts[row["label"]] = max(num_texts[row["label"]], row["text"] + 1)
        for axis, column in uses.items():
            column[row["label"], row["text"]] = row.get(axis) is not None
    return PromptPool(tuple(texts), table, num_texts, uses["environment"], uses["style"], per_image)


def pool_of_names(classes: Sequence[ClassInfo]) -> PromptPool:
    """One prompt a class, for estimates made before prompts are rendered."""
    rows = [{"label": info.label, "image": None, "text": 0, "prompt": info.name} for info in classes]
    return parse_pool(map(json.dumps, rows), classes, [])
