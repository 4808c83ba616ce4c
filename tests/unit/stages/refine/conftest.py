"""A small run as the generate stage leaves it for refine: lossless drawn images in three chunks, sources of another class."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from tiny_models import clip_folder, tiny_sd, transformers_clip_folder  # noqa: F401 - fixtures

from variegate.pipeline import Context
from variegate.store import RunFolder, drawn_path, synthetic_path

PER_CHUNK = 6


@pytest.fixture
def drawn_run(coloured_run: Callable[..., Context]) -> Callable[..., Context]:
    """Call it with the recipe's refine list; 18 images, made from the next class's unless `is_same_class`."""

    def make(steps: list[dict], name: str = "run", *, is_same_class: bool = False) -> Context:
        context = coloured_run(name, refine=steps, generate={"method": "real-mix"})
        if context.folder.drawn_format is None:
            _move(context.folder, 0 if is_same_class else 1)
        return context

    return make


def _move(folder: RunFolder, step: int) -> None:
    classes = folder.classes()
    sources = {
        info.label: [image.id for image in folder.real_images("train") if image.label == info.label] for info in classes
    }
    rows = folder.db.execute("SELECT row, id, target FROM plan ORDER BY row").fetchall()
    for row, image_id, target in rows:
        final = folder.path(synthetic_path(classes[target], image_id, "png"))
        folder.write(drawn_path(classes[target], image_id), final.read_bytes())
        final.unlink()
        source = sources[(target + step) % len(classes)][row % 5]
        folder.db.execute("UPDATE plan SET source = ?, chunk = ? WHERE row = ?", (source, row // PER_CHUNK, row))
    folder.db.execute("DELETE FROM chunks")
    for first in range(0, len(rows), PER_CHUNK):
        values = (first // PER_CHUNK, first, PER_CHUNK)
        folder.db.execute("INSERT INTO chunks VALUES (?, ?, ?, 'done', 1.0, NULL)", values)
    folder.set_meta("image_format", "jpg")
    folder.set_meta("drawn_format", "png")
    folder.set_meta("plan_key", "plan")
    folder.set_meta("backend", json.dumps({"device": "cpu", "dtype": "fp32", "threads": 1}))
