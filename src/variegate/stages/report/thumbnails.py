"""Thumbnails as data URIs, so that the page is one file.

An image that is gone or unreadable gets none; the page then shows an empty frame that says so.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.images import UnreadableImage, load_small, load_square
from variegate.masks import Masking, found_mask_path, masking_of
from variegate.recipe import Recipe
from variegate.records import RealImage
from variegate.stages.report.contents import CopyPair, Summary, Variant
from variegate.store import RunFolder, drawn_path, synthetic_path

EDGE_PX = 96
QUALITY = 82
BEFORE, KEPT = "-drawn", "-kept"
REPAINTED = 0.12  # how much of it shows


def image_files(folder: RunFolder, summary: Summary) -> dict[str, Path]:
    """Image id -> file, of every image the page needs; id + BEFORE for one as it was drawn, where refine went on with it."""
    real = {image.id: Path(image.path) for image in folder.real_images()}
    classes, extension = folder.classes(), folder.meta("image_format") or "jpg"
    holders = [variants for exhibit in summary.exhibits for variants in exhibit.variants]
    holders += [example for group in summary.dropped for example in group.examples]
    copied = summary.quality.pairs if summary.quality else ()
    items: tuple[Variant | CopyPair, ...] = (*holders, *copied)
    made = {item.id: folder.path(synthetic_path(classes[item.target], item.id, extension)) for item in items}
    known = real | made
    files = {image_id: known[image_id] for image_id in summary.image_ids if image_id in known}
    if folder.drawn_format is None:
        return files
    shown = [variant for exhibit in summary.exhibits for variant in exhibit.variants]
    before = {item.id: drawn_path(classes[item.target], item.id, folder.drawn_format) for item in shown}
    return files | {f"{image_id}{BEFORE}": folder.path(path) for image_id, path in before.items()}


def thumbnails(files: Mapping[str, Path], edge_px: int = EDGE_PX) -> dict[str, str]:
    """Image id -> WebP data URI of at most `edge_px` pixels a side; unreadable ones are left out."""
    made = ((image_id, _thumbnail(path, edge_px)) for image_id, path in files.items())
    return {image_id: uri for image_id, uri in made if uri}


def kept_parts(folder: RunFolder, summary: Summary, recipe: Recipe) -> dict[str, str]:
    """Image id + KEPT -> what masks keep of the sources shown, as `thumbnails` has them; empty where the recipe has no masks."""
    masking, classes = masking_of(recipe, EDGE_PX), folder.classes()
    if masking is None:
        return {}
    shown = {image_id for exhibit in summary.exhibits if exhibit.made_from for image_id in exhibit.real}
    sources = [image for image in folder.real_images("train") if image.id in shown]
    if recipe.generate.mask_from == "model":
        own = [folder.path(found_mask_path(classes[image.label], image.id)) for image in sources]
        sources = [replace(image, mask=str(path)) for image, path in zip(sources, own, strict=True)]
    made = {f"{image.id}{KEPT}": _kept(image, masking) for image in sources}
    return {name: uri for name, uri in made.items() if uri}


def _kept(image: RealImage, masking: Masking) -> str | None:
    try:
        square = load_square(Path(image.path), EDGE_PX, masking.fit, math.inf)
        repainted = masking.repainted(image)
    except UnreadableImage:
        return None
    alpha = np.where(repainted, round(255 * REPAINTED), 255).astype(np.uint8)
    return _uri(Image.fromarray(np.dstack([square, alpha])))


def _thumbnail(path: Path, edge_px: int) -> str | None:
    try:
        return _uri(load_small(path, edge_px, math.inf))
    except UnreadableImage:
        return None


def _uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
