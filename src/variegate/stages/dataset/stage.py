"""The dataset stage: read the user's images, check every one, fix the splits, and freeze them in the run folder.

`check` does all of the reading and none of the writing; `run` takes what it found and writes.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from variegate.backends.base import strange_data
from variegate.files import FILE_THREADS
from variegate.images import read_content
from variegate.pipeline import Context
from variegate.progress import Reporter
from variegate.recipe import Recipe
from variegate.records import RealImage, content_id
from variegate.stages.dataset.facts import DatasetFacts, SplitImage, gather_facts
from variegate.stages.dataset.listing import Listing
from variegate.stages.dataset.source import read_source
from variegate.store import RunFolder

NAME = "dataset"
SPLITS_FILE = "dataset/splits.json"
MAX_LISTED = 200  # duplicates and unreadable files in the summary; warnings give the numbers

_remembered: dict[Any, DatasetFacts] = {}  # the last check, so that `run` does not decode everything again
_listed: dict[Any, Listing] = {}  # the last check's hf: listing; another one may ask the hub and reads every label


def inputs(recipe: Recipe) -> dict[str, Any]:
    """The dataset section, the seed, and every image in use: changed bytes, labels, splits and notes are noticed."""
    images = _facts(recipe, _listing(recipe)).identity()
    return {
        "dataset": recipe.dataset.model_dump(mode="json"),
        "seed": recipe.seed,
        "images": images,
        "strange": strange_data(recipe),
    }


def check(recipe: Recipe, reporter: Reporter | None = None) -> DatasetFacts:
    """Read and validate the data without writing anything; raises DataError with every problem found."""
    _listed.clear()
    return _facts(recipe, _listing(recipe), reporter)


def run(context: Context) -> dict[str, Any]:
    """Freeze classes, images and splits; drawn and downloaded images are written below dataset/ first."""
    facts = _facts(context.recipe, _listing(context.recipe), context.reporter)
    images = _write_images(facts, context.folder, context.reporter)
    splits = _splits_json(facts, context.recipe.seed, images)
    context.folder.write(SPLITS_FILE, splits)
    context.folder.put_artefact(NAME, "splits", SPLITS_FILE)
    context.folder.put_dataset(facts.classes, images)
    warnings = [*facts.warnings, *strange_data(context.recipe)]
    for warning in warnings:
        context.reporter.line(f"{NAME}: warning: {warning}")
    return {
        "line": facts.line(),
        "counts": facts.counts(),
        "warnings": warnings,
        "duplicates": [
            {"kept": list(one.kept), "left_out": list(one.left_out), "class_names": list(one.class_names)}
            for one in facts.duplicates[:MAX_LISTED]
        ],
        "near_duplicates": [list(pair) for pair in facts.near_duplicates[:MAX_LISTED]],
        "unreadable": [{"name": name, "reason": reason} for name, reason in facts.unreadable[:MAX_LISTED]],
        "groups_split": facts.groups_split,
        "splits_sha256": hashlib.sha256(splits).hexdigest(),
    }


def intact(context: Context) -> bool:
    """Whether the images and masks that this stage wrote are still there."""
    images = context.folder.real_images()
    return all(Path(path).is_file() for image in images for path in (image.path, image.mask) if path)


def _listing(recipe: Recipe) -> Listing:
    """The recipe's images as they are now; hf: data as the last `check` found them."""
    if not recipe.dataset.path.startswith("hf:"):
        return read_source(recipe)
    key = _key(recipe)
    if key not in _listed:
        _listed[key] = read_source(recipe)
    return _listed[key]


def _facts(recipe: Recipe, listing: Listing, reporter: Reporter | None = None) -> DatasetFacts:
    key = (_key(recipe), listing.fingerprint())
    if key not in _remembered:
        facts = gather_facts(listing, recipe, reporter)
        _remembered.clear()
        _remembered[key] = facts
    return _remembered[key]


def _key(recipe: Recipe) -> tuple[Any, ...]:
    return str(Path.cwd()), recipe.dataset.model_dump_json(), recipe.seed


def _write_images(facts: DatasetFacts, folder: RunFolder, reporter: Reporter) -> list[RealImage]:
    own = sum(not isinstance(image.found.content, Path) for image in facts.images)
    if not own:
        return [_record(image, str(image.found.content), image.check.sha256) for image in facts.images]

    def write(image: SplitImage) -> RealImage:
        data = read_content(image.found.content)
        path = _own_path(image, facts)
        folder.write(path, data)
        mask = image.found.mask
        if callable(mask):
            folder.write(_mask_path(path), mask())
        return _record(image, path, hashlib.sha256(data).hexdigest())

    records = []
    with reporter.bar("writing images", own) as bar, ThreadPoolExecutor(FILE_THREADS) as writers:
        for record in writers.map(write, facts.images):
            records.append(record)
            bar.advance()
    return records


def _own_path(image: SplitImage, facts: DatasetFacts) -> str:
    """dataset/<split>/<class>/<number>.png for drawn images; hf: ones below the name of their part, by 1,000 rows."""
    stem = Path(image.found.name).name
    slug = facts.classes[image.label].slug
    if facts.drawn_here:
        return f"dataset/{image.split}/{slug}/{stem}.png"
    part = f"{int(stem) // 1000:04d}"
    return f"dataset/hf/{Path(image.found.name).parent}/{slug}/{part}/{stem}.{image.check.extension}"


def _mask_path(path: str) -> str:
    """Of a drawn image: dataset/masks/<split>/<class>/<number>.png."""
    return path.replace("dataset/", "dataset/masks/", 1)


def _record(image: SplitImage, path: str, sha256: str) -> RealImage:
    found, check = image.found, image.check
    group, caption = found.notes() if found.notes else (found.group, found.caption)
    mask = _mask_path(path) if callable(found.mask) else found.mask
    return RealImage(
        id=content_id(found.name, sha256),
        path=path,
        label=image.label,
        split=image.split,
        group=group,
        caption=caption,
        mask=str(mask) if mask else None,
        width=check.width,
        height=check.height,
        sha256=sha256,
    )


def _splits_json(facts: DatasetFacts, seed: int, images: list[RealImage]) -> bytes:
    """Who is where, for others to repeat: classes, then one image a line, sorted."""
    rows = [
        {"id": record.id, "name": image.found.name, "split": record.split, "label": record.label}
        for image, record in zip(facts.images, images, strict=True)
    ]
    rows.sort(key=lambda row: (row["split"], row["label"], row["id"]))
    head = {"data": facts.shown, "seed": seed, "classes": [one.name for one in facts.classes]}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "images": [\n{lines}\n]}}\n'.encode()
