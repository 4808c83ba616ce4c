"""The plan in run.db: written whole in one transaction, read back as chunks, exported as an image-folder table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from variegate.files import write_atomic
from variegate.records import soft_label
from variegate.stages.generate.plan import FROM_TEXT, Plan
from variegate.store import RunFolder, explained, synthetic_path

METADATA = "synthetic/train/metadata.jsonl"


def write_plan(folder: RunFolder, plan: Plan, meta: dict[str, str]) -> None:
    """Replace the plan, its chunks, its prompts and the notes on how it was made, all or nothing."""
    texts = list(dict.fromkeys([*plan.prompts, plan.negative]))
    negative = texts.index(plan.negative)
    with folder.transaction() as db:
        for table in ("plan", "chunks", "prompts"):
            db.execute(f"DELETE FROM {table}")
        db.executemany("INSERT INTO prompts VALUES (?, ?)", enumerate(texts))
        db.executemany(f"INSERT INTO plan VALUES ({', '.join('?' * 14)})", _plan_rows(plan, negative))
        chunks = zip(range(len(plan.first)), plan.first.tolist(), plan.size.tolist(), strict=True)
        db.executemany("INSERT INTO chunks VALUES (?, ?, ?, 'pending', NULL, NULL)", chunks)
        db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta.items())


def _plan_rows(plan: Plan, negative: int) -> Iterator[tuple]:
    """In blocks, so that a million rows are never a million tuples."""
    for chunk, (first, size) in enumerate(zip(plan.first.tolist(), plan.size.tolist(), strict=True)):
        rows = slice(first, first + size)
        sources = [None if index == FROM_TEXT else plan.sources[index] for index in plan.source[rows].tolist()]
        masks = ["" if index == FROM_TEXT else plan.masks[index] for index in plan.source[rows].tolist()]
        passes = [" ".join(map(repr, plan.sequences[index])) for index in plan.passes[rows].tolist()]
        numbers = (plan.strength, plan.steps, plan.seed, plan.token_std, plan.token_seed)
        columns = (column[rows].tolist() for column in (plan.target, plan.prompt, *numbers))
        for row, (image_id, source, target, prompt, *rest) in enumerate(
            zip(plan.ids[rows], sources, *columns, masks, passes, strict=True), start=first
        ):
            yield row, image_id, chunk, source, target, prompt, negative, *rest


def lost_chunks(folder: RunFolder, image_format: str) -> list[int]:
    """Chunks recorded as done of which a file is missing."""
    classes = folder.classes()
    query = """SELECT chunk, plan.id, target FROM plan JOIN chunks USING (chunk) WHERE state = 'done' ORDER BY row"""
    lost: dict[int, None] = {}
    for chunk, image_id, target in folder.db.execute(query):
        path = folder.root / synthetic_path(classes[target], image_id, image_format)
        if chunk not in lost and not path.exists():
            lost[chunk] = None
    return list(lost)


def write_metadata(folder: RunFolder, *, gamma: float, kappa: float, image_format: str) -> None:
    """Write synthetic/train/metadata.jsonl, which makes the folder an `imagefolder` data set.

    Sorted by id; `soft_label` is Diff-Mix's, a list of labels with weights.
    """
    records = _metadata(folder, gamma, kappa, image_format)
    with explained(folder.root):
        write_atomic(
            folder.path(METADATA), (f"{json.dumps(record, ensure_ascii=False)}\n".encode() for record in records)
        )


def _metadata(folder: RunFolder, gamma: float, kappa: float, image_format: str) -> Iterator[dict]:
    classes = folder.classes()
    source_labels = {image.id: image.label for image in folder.real_images("train")}
    query = """SELECT plan.id, source, target, p.text, strength, seed FROM plan JOIN prompts p ON p.id = plan.prompt
               JOIN chunks USING (chunk) WHERE state = 'done' ORDER BY plan.id"""
    for image_id, source, target, prompt, strength, seed in folder.db.execute(query):
        pairs = soft_label(source_labels.get(source), target, strength, gamma=gamma, kappa=kappa)
        relative = Path(synthetic_path(classes[target], image_id, image_format)).relative_to("synthetic/train")
        yield {
            "file_name": relative.as_posix(),
            "label": target,
            "class_name": classes[target].name,
            "prompt": prompt,
            "strength": strength,
            "source": source,
            "soft_label": [{"label": label, "weight": weight} for label, weight in pairs],
            "seed": seed,
            "id": image_id,
        }
