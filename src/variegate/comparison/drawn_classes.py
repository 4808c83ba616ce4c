"""What a draw's classifiers of the real images alone take a recipe's drawn images for; kept in the recipe's run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from variegate.comparison.plan import REAL
from variegate.images import load_squares
from variegate.recipe import ArmSection
from variegate.recipe_file import load_recipe
from variegate.records import arm_folder, content_id, rounded, seed_from
from variegate.stages.evaluate.stage import read_seeds
from variegate.stages.train.class_agreement import asked_about, class_agreement, is_drawn_as_another
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


def drawn_classes(folder: RunFolder, judges: Path, seeds: int) -> DrawnClasses | None:
    """Ask the classifiers of real images alone in the run `judges` about the kept images of the run in `folder`.

    None where it has no images of its own, or only such as show two classes. Its class_agreement.json is read again while
    images, decisions and classifiers stay.
    """
    images, names = folder.synthetic_images(), tuple(info.name for info in folder.classes())
    if not images:
        return None
    with RunFolder.read(judges) as other:
        taught = [json.loads(other.meta(f"task:{_home(seed)}") or "{}").get("key") for seed in range(seeds)]
    key = content_id([(image.id, image.refined, image.weight) for image in images], taught)
    path = folder.path(FILE)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if known.get("key") != key:
        known = {"key": key, "classes": rounded(_ask(folder, judges, seeds))}
        folder.write(FILE, json.dumps(known, indent=1) + "\n")
    return DrawnClasses(tuple(known["classes"]), names) if known["classes"] else None


def _home(seed: int) -> str:
    return f"{arm_folder(REAL)}/seed-{seed}"


def _ask(folder: RunFolder, judges: Path, seeds: int) -> list[dict[str, Any]]:
    """As `class_agreement` tells it; empty where there is nothing to ask about."""
    from variegate.classifier.fit import choose_compute, predict
    from variegate.classifier.models import open_classifier
    from variegate.stages.train.work import threads_for

    recipe, images = load_recipe(str(folder.root / "recipe.yaml")), folder.synthetic_images()
    rng = np.random.default_rng(seed_from(recipe.seed, "class-agreement"))
    chosen = asked_about(images, len(folder.classes()), recipe.train.label.gamma, rng)
    if not len(chosen):
        return []
    opened = [open_classifier(judges / _home(seed) / "model.safetensors") for seed in range(seeds)]
    size_px, section = int(opened[0][1]["size_px"]), recipe.dataset
    paths = [folder.path(images[k].path) for k in chosen]
    pixels = load_squares(paths, size_px, section.fit, section.max_megapixels)
    compute = choose_compute(recipe.backend.device, threads_for(recipe))
    drawn = np.mean([predict(net, pixels, compute) for net, _ in opened], axis=0)
    with RunFolder.read(judges) as other:
        held_out = other.real_images("val")
        said = read_seeds(other, ArmSection(name=REAL, images="real"), range(seeds), "val", held_out)
    real = np.mean([seed.test["selected"] for seed in said], axis=0)
    targets = np.array([images[k].target for k in chosen], np.int64)
    return class_agreement(drawn, targets, real, np.array([image.label for image in held_out], np.int64))
