"""The table that makes a run's synthetic images an image-folder data set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from variegate.files import write_atomic
from variegate.records import soft_label
from variegate.store import RunFolder, explained, synthetic_path

METADATA = "synthetic/train/metadata.jsonl"


def write_metadata(folder: RunFolder, *, gamma: float, kappa: float) -> None:
    """Write synthetic/train/metadata.jsonl, which makes the folder an `imagefolder` data set.

    Sorted by id; `soft_label` is Diff-Mix's, a list of labels with weights. Refined images say which share of them is
    their source's own.
    """
    records = _metadata(folder, gamma, kappa)
    with explained(folder.root):
        write_atomic(
            folder.path(METADATA), (f"{json.dumps(record, ensure_ascii=False)}\n".encode() for record in records)
        )


def _metadata(folder: RunFolder, gamma: float, kappa: float) -> Iterator[dict]:
    classes, extension = folder.classes(), folder.meta("image_format") or "jpg"
    source_labels = {image.id: image.label for image in folder.real_images("train")}
    refines = folder.drawn_format is not None
    query = f"""SELECT plan.id, source, target, p.text, strength, seed, COALESCE(f.original_share, 0.0)
                FROM plan JOIN prompts p ON p.id = plan.prompt JOIN chunks USING (chunk)
                {"JOIN" if refines else "LEFT JOIN"} refined f ON f.id = plan.id
                WHERE state = 'done' ORDER BY plan.id"""
    for image_id, source, target, prompt, strength, seed, share in folder.db.execute(query):
        rule = {"gamma": gamma, "kappa": kappa, "original_share": share}
        relative = Path(synthetic_path(classes[target], image_id, extension)).relative_to("synthetic/train")
        yield {
            "file_name": relative.as_posix(),
            "label": target,
            "class_name": classes[target].name,
            "prompt": prompt,
            "strength": strength,
            "source": source,
            "soft_label": [
                {"label": label, "weight": weight}
                for label, weight in soft_label(source_labels.get(source), target, strength, **rule)
            ],
            **({"original_share": share} if refines else {}),
            "seed": seed,
            "id": image_id,
        }
