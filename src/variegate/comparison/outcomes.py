"""Read what the runs of a comparison found: right and wrong answers, accuracies, what it took, and a few images to show."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from variegate.comparison import retrieval
from variegate.comparison.drawn_classes import DrawnClasses, drawn_classes
from variegate.comparison.shelf import spent
from variegate.image_quality.copying import copies_of_run
from variegate.progress import QuietReporter
from variegate.recipe import ArmSection, Recipe
from variegate.recipe_file import load_recipe
from variegate.records import RealImage
from variegate.stages.evaluate.metrics import shot_classes
from variegate.stages.evaluate.results import WEIGHTS, ArmOutcome, TestSet, summarise_arm
from variegate.stages.evaluate.stage import read_seeds
from variegate.stages.report.gallery import spread
from variegate.stages.train.class_agreement import DRAWN_AS_OTHERS
from variegate.stages.train.pools import with_pools
from variegate.store import RunFolder

SHOWN_CLASSES, SHOWN_IMAGES = 3, 5  # of a method's images on the page
SHOWN_COPIES = 6
STAGES = ("prompts", "refine", "curate")
NOTHING: Mapping[str, Any] = {"seconds": 0.0, "energy_j": 0.0, "memory_mb": None}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one method reached in one draw."""

    correct: Mapping[str, np.ndarray]  # by weights: float64 [seeds, test images]
    val: Mapping[str, tuple[float | None, ...]]  # by weights, one a seed
    cost: Mapping[str, Any]
    synthetic: Mapping[str, int] | None  # drawn and kept; None for real images alone
    parts: Mapping[str, float] = field(default_factory=dict)  # accuracy on parts of the test images and extra test sets
    shown: tuple[Mapping[str, Any], ...] = field(default=())
    drawn_classes: DrawnClasses | None = None  # of a recipe: what classifiers of the real images take its images for
    copies: Mapping[str, Any] | None = None  # how many images are copies of training images, and the nearest of them
    warnings: tuple[str, ...] = ()
    images: tuple[str, ...] = ()  # the test images, in the order of `correct`

    def test(self, weights: str) -> list[float]:
        """Accuracy of every seed."""
        return [float(value) for value in self.correct[weights].mean(axis=1)]


def read_outcome(
    root: Path,
    arm: ArmSection,
    seeds: int,
    lesson: Mapping[str, Any] | None,
    *,
    test: Sequence[RealImage] | None = None,
    judges: Path | None = None,
) -> Outcome:
    """One arm of a finished run; `lesson` is the cost of its adapter.

    `test` are the images that every method of the draw has to have been tested on, `judges` the run with the draw's
    classifiers of real images alone, which are asked about the drawn ones. Raises DataError where it was tested on others.
    """
    with RunFolder.read(root) as folder:
        images = list(test) if test is not None else folder.real_images("test")
        found = ArmOutcome(arm.name, read_seeds(folder, arm, range(seeds), "test", images))
        labels = np.array([image.label for image in images], np.int64)
        results = json.loads(folder.path("results.json").read_text(encoding="utf-8"))
        return Outcome(
            correct={weights: found.correct(weights, labels) for weights in WEIGHTS},
            val={weights: tuple(seed.val_accuracy[weights] for seed in found.seeds) for weights in WEIGHTS},
            cost=_cost(folder, arm, seeds, lesson),
            synthetic=_counts(folder, results) if arm.has_synthetic else None,
            parts=_parts(folder, results, arm, seeds, TestSet("test", images, [found], _shots(folder, results))),
            shown=_shown(folder) if arm.has_synthetic else (),
            drawn_classes=drawn_classes(folder, judges, seeds) if judges else None,
            copies=_copies(folder) if arm.has_synthetic else None,
            warnings=tuple(results["warnings"]),
            images=tuple(image.id for image in images),
        )


def drawn_as_others(method: str, found: Sequence[Outcome]) -> str:
    """Which classes a method draws as others and in which draws, in one line; empty where none is."""
    seen: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for draw, one in enumerate(found, start=1):
        for row in one.drawn_classes.drawn_as_others if one.drawn_classes else ():
            seen.setdefault(f"{row['class']} as {row['as']}", []).append((draw, row))
    told = []
    for pair, rows in seen.items():
        draws = f"draw{'s' if len(rows) > 1 else ''} {', '.join(str(draw) for draw, _ in rows)}"
        taken, own, real = (_range([row[key] for _, row in rows]) for key in ("taken", "agreement", "real_agreement"))
        told.append(f"{pair} in {draws} ({taken} of its images; as itself {own}, where real images are at {real})")
    return f"{method}: {DRAWN_AS_OTHERS}{'; '.join(told)}" if told else ""


def _range(shares: Sequence[float]) -> str:
    """In per cent.

    >>> _range([0.5]), _range([0.7, 0.25])
    ('50 %', '25 to 70 %')
    """
    low, high = (f"{100 * end:.0f}" for end in (min(shares), max(shares)))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _shots(folder: RunFolder, results: Mapping[str, Any]) -> dict[str, list[int]] | None:
    """Labels of many-, medium- and few-shot classes, as the run told them apart."""
    recipe = load_recipe(str(folder.root / "recipe.yaml"))
    return shot_classes(results["counts"]["train"], recipe.evaluate.shot_bounds)


def _parts(
    folder: RunFolder, results: Mapping[str, Any], arm: ArmSection, seeds: int, test: TestSet
) -> dict[str, float]:
    """What the whole hides, of the selected weights: classes with few images, rare backgrounds, test sets of their own."""
    whole = summarise_arm(test.arms[0], test)
    parts = {f"{kind}-shot": part["accuracy"] for kind, part in (whole["shots"] or {}).items()}
    if whole["worst_group"] is not None:
        parts["worst group"] = whole["worst_group"]
    if whole["worst_cell"] is not None:
        parts["worst cell"] = whole["worst_cell"]["accuracy"]
    for extra in results["extra_tests"]:
        asked = folder.real_images(extra["split"])
        said = ArmOutcome(arm.name, read_seeds(folder, arm, range(seeds), extra["split"], asked))
        labels = np.array([image.label for image in asked], np.int64)
        parts[extra["title"]] = float(said.correct("selected", labels).mean())
    return parts


def read_val(root: Path, arm: ArmSection, seeds: int) -> float | None:
    """Mean validation accuracy of an arm's selected weights; None without validation images."""
    with RunFolder.read(root) as folder:
        found = read_seeds(folder, arm, range(seeds), "test", folder.real_images("test"))
    return mean_if_all([seed.val_accuracy["selected"] for seed in found])


def mean_if_all(values: Sequence[float | None]) -> float | None:
    """The mean; None where a value is missing, or all are.

    >>> mean_if_all([0.25, 0.75]), mean_if_all([0.25, None]), mean_if_all([])
    (0.5, None, None)
    """
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def test_images(root: Path) -> list[RealImage]:
    """The test images of a run, in its order."""
    with RunFolder.read(root) as folder:
        return folder.real_images("test")


def counts_of(root: Path) -> dict[str, list[int]]:
    """Real images of each class in train, val and test."""
    return json.loads((root / "results.json").read_text(encoding="utf-8"))["counts"]


def _counts(folder: RunFolder, results: Mapping[str, Any]) -> dict[str, int]:
    """Images drawn and kept; those of pools, such as retrieved ones, were drawn by nobody here."""
    pools = load_recipe(str(folder.root / "recipe.yaml")).train.pools
    return {"drawn": results["synthetic"]["drawn"], "kept": len(with_pools(folder.synthetic_images(), pools))}


def _cost(folder: RunFolder, arm: ArmSection, seeds: int, lesson: Mapping[str, Any] | None) -> dict[str, Any]:
    """Seconds, energy and largest process by stage, and whether other images or adapters, made elsewhere, came in for nothing.

    Drawing counts all chunks where it was interrupted, training every seed of this arm.
    """
    said = {name: folder.stage(name) for name in (*STAGES, "generate", "train")}
    done = {name: found for name, found in said.items() if found}
    parts: dict[str, Mapping[str, Any]] = {"train": _training(done["train"], arm, seeds)}
    is_whole, evaluations = True, 0
    if arm.has_synthetic:
        recipe = load_recipe(str(folder.root / "recipe.yaml"))
        retrieved = _retrieving(recipe)
        is_whole = None not in retrieved and (recipe.adapt.method == "none" or lesson is not None)
        evaluations = done["generate"][1]["unet_evaluations"]
        made = {"adapt": lesson or NOTHING, "draw": _drawing(done["generate"])}
        if retrieved and retrieved[0]:
            made[retrieval.NAME] = retrieved[0]
        parts = made | {name: spent(done[name]) for name in STAGES if name in done} | parts
    return {
        **{key: {name: one[key] for name, one in parts.items()} for key in NOTHING},
        "unet_evaluations": evaluations,
        "made_elsewhere": not is_whole,
    }


def _training(done: tuple[str, Mapping[str, Any], float], arm: ArmSection, seeds: int) -> dict[str, Any]:
    """Of one arm; what the machine used for all arms together is shared out by their seconds."""
    tasks, whole = done[1]["tasks"], spent(done)
    seconds = sum(task["seconds"] for task in tasks if task["arm"] == arm.name and task["seed"] < seeds)
    share = seconds / max(sum(task["seconds"] for task in tasks), 0.1)
    energy = whole["energy_j"]
    return whole | {"seconds": seconds, "energy_j": None if energy is None else energy * share}


def _drawing(done: tuple[str, Mapping[str, Any], float]) -> dict[str, Any]:
    is_whole = done[1].get("drawn_now") == done[1]["drawn"]
    return spent(done) | ({} if is_whole else {"seconds": done[1].get("chunk_seconds", 0.0)})


def _retrieving(recipe: Recipe) -> list[dict[str, Any] | None]:
    """What it took to retrieve the images of each of the recipe's pools; None for other pools."""
    found = [retrieval.recorded(root) for root in recipe.train.pools]
    return [spent(done) if done else None for done in found]


def _copies(folder: RunFolder) -> dict[str, Any] | None:
    """Copies among the run's own images, the kept ones first, or among those it has from retrieval, which are not shown.

    None where it has neither: those of other pools are their own runs'.
    """
    found = copies_of_run(folder, QuietReporter())
    if found is None:
        return _copies_retrieved(folder)
    images = {image.id: image for image in folder.synthetic_images(kept_only=False)}
    classes = folder.classes()
    nearest = sorted(found["list"], key=lambda one: one["action"] != "keep")[:SHOWN_COPIES]
    shown = [
        {
            "class": classes[images[one["id"]].target].name,
            "real": one["of"],
            "image": images[one["id"]].path,
            **{key: one[key] for key in ("is_source", "distance", "action")},
        }
        for one in nearest
    ]
    kept = sum(image.action == "keep" for image in images.values())
    return {**{key: found[key] for key in ("images", "copies", "copies_kept")}, "kept": kept, "shown": shown}


def _copies_retrieved(folder: RunFolder) -> dict[str, Any] | None:
    pools = load_recipe(str(folder.root / "recipe.yaml")).train.pools
    for root in (root for root in pools if retrieval.recorded(root)):
        with RunFolder.read(Path(root)) as pool:
            found = copies_of_run(pool, QuietReporter())
        if found:
            counts = {key: found[key] for key in ("images", "copies", "copies_kept")}
            return {**counts, "kept": found["images"], "shown": []}
    return None


def _shown(folder: RunFolder) -> tuple[dict[str, Any], ...]:
    """A few kept images of a few classes, beside the id of the one they were made from or an example; paths inside the run."""
    classes, real = folder.classes(), folder.real_images("train")
    made: dict[int, list] = {}
    for image in folder.synthetic_images():
        made.setdefault(image.target, []).append(image)
    rows = []
    for label in spread(sorted(made), SHOWN_CLASSES):
        images = spread(made[label], SHOWN_IMAGES)
        first = images[0].source
        source = next((one for one in real if one.id == first or first is None and one.label == label), None)
        rows.append(
            {
                "class": classes[label].name,
                "real": source and source.id,
                "images": [image.path for image in images],
                "prompt": images[0].prompt,
            }
        )
    return tuple(rows)
