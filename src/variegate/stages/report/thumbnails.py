"""Thumbnails as data URIs, so that the page is one file.

An image that is gone or unreadable gets none; the page then shows an empty frame that says so.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path

from variegate.images import UnreadableImage, load_small
from variegate.stages.report.contents import CopyPair, Summary, Variant
from variegate.store import RunFolder, drawn_path, synthetic_path

EDGE_PX = 96
QUALITY = 82
BEFORE = "-drawn"


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


def _thumbnail(path: Path, edge_px: int) -> str | None:
    try:
        small = load_small(path, edge_px, math.inf)
    except UnreadableImage:
        return None
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
