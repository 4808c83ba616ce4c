"""What a draw's classifiers of the real images alone take a recipe's drawn images for; kept in the recipe's run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate.files import file_sha256
from variegate.images import load_squares
from variegate.recipe_file import load_recipe
from variegate.records import content_id, rounded, seed_from
from variegate.stages.train.class_agreement import asked_about, class_agreement, is_drawn_as_another, warning
from variegate.store import RunFolder

FILE = "class_agreement.json"


@dataclass(frozen=True, slots=True)
class DrawnClasses:
    """`entries` are `class_agreement`'s, one a class of `names`."""

    entries: tuple[Mapping[str, Any], ...]
    names: tuple[str, ...]

    @property
    def agreement(self) -> float | None:
        """Mean share, over classes, of drawn images that have their class's name; None where none was asked about."""
        shares = [entry["agreement"] for entry in self.entries if entry["agreement"] is not None]
        return float(np.mean(shares)) if shares else None

    @property
    def drawn_as_others(self) -> list[dict[str, Any]]:
        """Classes whose images mostly look like one other class's."""
        keys = ("images", "agreement", "taken", "real_agreement")
        return [
            {"class": name, "as": self.names[entry["taken_for"]], **{key: entry[key] for key in keys}}
            for name, entry in zip(self.names, self.entries, strict=True)
            if is_drawn_as_another(entry)
        ]

    @property
    def warning(self) -> str:
        return warning(self.entries, self.names)


def drawn_classes(folder: RunFolder, classifiers: Sequence[Path]) -> DrawnClasses | None:
    """Ask `classifiers`, files of the same draw's real images, about a run's kept images; None where it has none of its own.

    Its class_agreement.json is read again while images, decisions and classifiers stay.
    """
    images, names = folder.synthetic_images(), tuple(info.name for info in folder.classes())
    if not images or not classifiers:
        return None
    key = content_id([(image.id, image.refined, image.weight) for image in images], list(map(file_sha256, classifiers)))
    path = folder.path(FILE)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("key") != key:
        known = {"key": key, "classes": rounded(_ask(folder, classifiers))}
        folder.write(FILE, json.dumps(known, indent=1) + "\n")
    return DrawnClasses(tuple(known["classes"]), names)


def _ask(folder: RunFolder, classifiers: Sequence[Path]) -> list[dict[str, Any]]:
    from variegate.classifier.fit import choose_compute, predict
    from variegate.classifier.models import open_classifier
    from variegate.stages.train.work import threads_for

    recipe, images, held_out = (
        load_recipe(str(folder.root / "recipe.yaml")),
        folder.synthetic_images(),
        folder.real_images("val"),
    )
    rng = np.random.default_rng(seed_from(recipe.seed, "class-agreement"))
    chosen = asked_about(images, len(folder.classes()), recipe.train.label.gamma, rng)
    opened = [open_classifier(path) for path in classifiers]
    size_px, section = int(opened[0][1]["size_px"]), recipe.dataset
    paths = [folder.path(images[k].path) for k in chosen], [Path(image.path) for image in held_out]
    compute = choose_compute(recipe.backend.device, threads_for(recipe))
    drawn, real = (
        np.mean([predict(net, pixels, compute) for net, _ in opened], axis=0)
        for pixels in (load_squares(some, size_px, section.fit, section.max_megapixels) for some in paths)
    )
    targets = np.array([images[k].target for k in chosen], np.int64)
    return class_agreement(drawn, targets, real, np.array([image.label for image in held_out], np.int64))
