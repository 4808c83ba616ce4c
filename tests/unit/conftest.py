"""A small run made by hand: coloured squares on noise, real ones split three ways and synthetic ones drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from variegate.images import encode_image
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe import Recipe
from variegate.recipe_file import dump_recipe
from variegate.records import ClassInfo, RealImage, content_id
from variegate.store import RunFolder, class_slug, synthetic_path

COLOURS = {"blue": (40, 60, 200), "green": (40, 170, 60), "red": (200, 50, 40)}
SPLITS = {"train": 5, "val": 4, "test": 12}
DRAWN = 6  # synthetic images a class
SIZE_PX = 16

SMALL = {
    "dataset": {"size_px": SIZE_PX},
    "train": {"model": "resnet-small", "batch": 8, "steps": 12, "evaluations": 3, "lr": 0.002},
    "evaluate": {"seeds": 2},
}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets as small as those here are quicker on one thread, above all beside other work."""
    from variegate.classifier import fit

    monkeypatch.setattr(fit, "available_cores", lambda: 1)


def square(label: int, seed: int) -> np.ndarray:
    """uint8 [16, 16, 3]: a square of the class's colour, somewhere, on grey noise."""
    rng = np.random.default_rng([label, seed])
    pixels = rng.integers(60, 190, (SIZE_PX, SIZE_PX, 1)).repeat(3, axis=2)
    top, left = rng.integers(0, SIZE_PX - 8, 2)
    pixels[top : top + 8, left : left + 8] = np.array(list(COLOURS.values())[label]) + rng.integers(-20, 20, (8, 8, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def merged(base: dict, changes: dict) -> dict:
    """Sections of `changes` laid over those of `base`, key by key."""
    nested = {key: merged(base.get(key, {}), value) for key, value in changes.items() if isinstance(value, dict)}
    return base | changes | nested


def put_real(folder: RunFolder, splits: dict[str, int]) -> list[RealImage]:
    classes = [ClassInfo(label, name, class_slug(label, name), "") for label, name in enumerate(COLOURS)]
    images = []
    for info in classes:
        for number, (split, count) in enumerate(splits.items()):
            for index in range(count):
                path = f"data/{split}/{info.slug}/{index}.png"
                folder.write(path, encode_image(square(info.label, 100 * number + index), "png"))
                group = f"side {index % 2}" if split == "test" else None
                images.append(
                    RealImage(content_id(path), path, info.label, split, group, sha256=content_id("bytes", path))
                )
    folder.put_dataset(classes, images)
    return images


def put_synthetic(folder: RunFolder, real: list[RealImage], drawn: int) -> list[str]:
    """Plan rows, one done chunk, and the images; the last of each class is black. Returns ids in plan order."""
    folder.set_meta("image_format", "png")
    train = [image for image in real if image.split == "train"]
    ids = []
    with folder.transaction() as db:
        db.execute("INSERT INTO prompts VALUES (1, 'a square'), (2, '')")
        for info in folder.classes():
            sources = [image for image in train if image.label == info.label]
            for index in range(drawn):
                row, image_id = len(ids), content_id("drawn", info.label, index)
                source = None if index == 0 else sources[index % len(sources)].id
                values = (row, image_id, 0, source, info.label, 1, 2, 0.5, 5, row)
                db.execute("INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '', '')", values)
                pixels = square(info.label, 1000 + index) * np.uint8(index < drawn - 1)
                folder.write(synthetic_path(info, image_id, "png"), encode_image(pixels, "png"))
                ids.append(image_id)
        db.execute("INSERT INTO chunks VALUES (0, 0, ?, 'done', 1.0, NULL)", (len(ids),))
    return ids


@pytest.fixture
def coloured_run(tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """Call it with recipe sections to change; gives the context that a stage after generate is run with."""
    opened: dict[str, RunFolder] = {}

    def make(name: str = "run", *, splits: dict[str, int] = SPLITS, drawn: int = DRAWN, **changes: dict) -> Context:
        recipe = Recipe.model_validate(merged(SMALL, changes))
        folder = opened.get(name) or RunFolder.create(tmp_path / name)
        opened[name] = folder
        if not folder.classes():
            folder.write("recipe.yaml", dump_recipe(recipe))
            put_synthetic(folder, put_real(folder, splits), drawn)
        return Context(recipe, folder, QuietReporter())

    yield make
    for folder in opened.values():
        folder.close()
