"""quality.json: how good a run's synthetic images are, against real images that no part of the run has learned from.

The reference is the validation and test images. Every measure is taken twice at equal size: synthetic images against one half
of the reference, and the other half against it, which is the floor; the mean of several such splits. Copies alone are looked
for among the training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from variegate import __version__
from variegate.encoders import AUTO, CLASSIFIER, DeepEncoder, Encoder, check_encoder, open_encoder
from variegate.errors import DataError, ModelError, Problem
from variegate.image_quality import measures
from variegate.image_quality.copying import Copies, copy_facts, find_copies, units_of
from variegate.image_quality.keys import images_key
from variegate.images import load_squares
from variegate.judge import Judge, class_agreement, train_judge
from variegate.leaks import encoder_problems
from variegate.progress import Reporter
from variegate.recipe import DatasetSection, Recipe
from variegate.records import rounded, seed_from
from variegate.store import RunFolder

SCHEMA = 2
WHERE = "--encoder"
REPEATS = 5  # splits of the reference
DIVERSITY_IMAGES = 100  # of a class, of either kind, that are compared with each other
MAPS_AT_A_TIME = 8  # images: all layers of VGG-16 take 25 MB each, and as much again as unit vectors
MAX_IMAGES = 5000  # of either kind that are measured; more are drawn from, by seed
LEAST_REFERENCE, LEAST_SYNTHETIC = 20, 10  # images that a comparison needs, overall and of a class
LEAST_FRECHET = 50  # images a side from which on a class's Frechet distance says anything

Features = np.ndarray


def default_encoder(recipe: Recipe) -> str:
    """The starter's own image-text pair for drawn butterflies, else the drawing model's features."""
    from variegate.backends.folder import OWN

    known = recipe.backend.model in OWN and recipe.dataset.path.startswith("builtin:meadow")
    return "clip:starter" if known else AUTO


def measure(folder: RunFolder, recipe: Recipe, encoder: str, reporter: Reporter) -> dict[str, Any]:
    """The whole of quality.json; raises ModelError for an encoder that is not to be had, DataError without images."""
    problems = check_encoder(encoder, WHERE)
    if encoder.startswith(CLASSIFIER):
        text = "the classifier is what is evaluated, so it cannot say how good its own training images are"
        problems = [Problem(WHERE, text, "use auto, clip:... or timm:...")]
    if problems:
        raise ModelError(problems)
    reference = [image for image in folder.real_images() if image.split in ("val", "test")]
    leaks = encoder_problems(WHERE, encoder, [image.sha256 for image in reference if image.sha256])
    if leaks:
        raise ModelError(leaks)
    every = folder.synthetic_images(kept_only=False)
    kept = [image for image in every if image.action == "keep"]
    if not kept:
        raise DataError(Problem(str(folder.root), "has no kept synthetic image", "draw some, or name another run"))
    seed = seed_from(recipe.seed, "quality")
    shown, compared = _some(kept, seed_from(seed, "kept")), _some(reference, seed_from(seed, "reference"))
    units = units_of(folder, compared)
    targets = np.array([image.target for image in shown], np.int64)
    labels = np.array([image.label for image in compared], np.int64)
    with open_encoder(encoder, recipe, WHERE) as opened:
        drawn, held_out = [folder.path(image.path) for image in shown], [Path(image.path) for image in compared]
        made, _ = _features(opened, drawn, recipe.dataset, reporter, "synthetic images")
        real, mirrored = _features(opened, held_out, recipe.dataset, reporter, "real images", mirror=True)
        diversity = {
            "synthetic": _diversity(opened, drawn, targets, recipe, reporter, "synthetic images"),
            "real": _diversity(opened, held_out, labels, recipe, reporter, "real images"),
        }
    judge = _teach(real, mirrored, labels, units, seed)
    names = [info.name for info in folder.classes()]
    copies = find_copies(folder, recipe.dataset, every, reporter, seed=recipe.seed, pasted=recipe.generate.mask_paste)
    return rounded(
        {
            "schema": SCHEMA,
            "variegate": __version__,
            "encoder": encoder,
            "images_key": images_key(kept),
            "images": {"kept": len(kept), "measured": len(shown), "reference": len(compared)},
            "overall": {
                "measures": compare(made, real, labels, units, seed),
                "diversity": _mean_diversity(diversity),
                "agreement": _agreement(judge, made, targets),
            },
            "per_class": [
                {
                    "class": name,
                    **_of_class(made[targets == k], real[labels == k], _at(units, labels == k), judge, k, seed),
                    "diversity": _diversity_of(diversity, k),
                }
                for k, name in enumerate(names)
            ],
            "judge": _judge_facts(judge, encoder),
            "copies": copy_facts(copies, every, names),
            "notes": _notes(encoder, judge, copies, len(compared)),
        }
    )


# ------------------------------------------------------------------------------------------------ features


def _some(images: Sequence, seed: int) -> list:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:MAX_IMAGES])
    return [images[k] for k in chosen]


def _features(
    encoder: Encoder,
    paths: Sequence[Path],
    section: DatasetSection,
    reporter: Reporter,
    what: str,
    *,
    mirror: bool = False,
) -> tuple[Features, Features]:
    """float64 [N, D] of the images, and of their mirror images where asked for."""
    found, mirrored = [np.empty((0, 0))], [np.empty((0, 0))]
    with reporter.bar(f"encoding {what}", len(paths)) as bar:
        for first in range(0, len(paths), 256):
            some = paths[first : first + 256]
            pixels = load_squares(some, encoder.size_px, section.fit, section.max_megapixels)
            found.append(encoder.features(pixels))
            if mirror:
                mirrored.append(encoder.features(np.ascontiguousarray(pixels[:, :, ::-1])))
            bar.advance(len(some))
    plain, flipped = (np.concatenate(parts[1:] or parts).astype(np.float64) for parts in (found, mirrored))
    return plain, flipped


def _diversity(
    encoder: DeepEncoder, paths: Sequence[Path], labels: np.ndarray, recipe: Recipe, reporter: Reporter, what: str
) -> dict[int, float]:
    """How unlike the images of each class are, at most DIVERSITY_IMAGES of them; classes with one image are left out."""
    section, seed, found = recipe.dataset, seed_from(recipe.seed, "diversity"), {}
    own = {
        label: _chosen(np.flatnonzero(labels == label), seed_from(seed, label))
        for label in sorted(set(labels.tolist()))
    }
    with reporter.bar(f"comparing {what}", sum(map(len, own.values()))) as bar:
        for label, places in own.items():
            diversity = measures.Diversity()
            for first in range(0, len(places), MAPS_AT_A_TIME):
                some = [paths[place] for place in places[first : first + MAPS_AT_A_TIME]]
                diversity.add(encoder.maps(load_squares(some, encoder.size_px, section.fit, section.max_megapixels)))
                bar.advance(len(some))
            if diversity.value is not None:
                found[label] = diversity.value
    return found


def _chosen(places: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(places)[:DIVERSITY_IMAGES]


def _diversity_of(diversity: Mapping[str, Mapping[int, float]], label: int) -> dict[str, float] | None:
    known = all(label in of_kind for of_kind in diversity.values())
    return {kind: of_kind[label] for kind, of_kind in diversity.items()} if known else None


def _mean_diversity(diversity: Mapping[str, Mapping[int, float]]) -> dict[str, float] | None:
    """Over the classes that have it of both kinds."""
    both = sorted(set.intersection(*(set(of_kind) for of_kind in diversity.values())))
    return (
        {kind: float(np.mean([of_kind[label] for label in both])) for kind, of_kind in diversity.items()}
        if both
        else None
    )


def _at(items: Sequence[str], chosen: np.ndarray) -> list[str]:
    return [item for item, is_chosen in zip(items, chosen, strict=True) if is_chosen]


# ------------------------------------------------------------------------------------------------ measures


def halves(labels: np.ndarray, units: Sequence[str], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Indices of two halves of a reference, about equal in every class; images of one unit stay together."""
    members: dict[str, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    order = [list(members.values())[k] for k in rng.permutation(len(members))]
    order.sort(key=lambda unit: (labels[unit[0]], -len(unit)))  # stable: by chance among equals
    sides: tuple[list[int], list[int]] = ([], [])
    for together in order:
        sides[len(sides[1]) < len(sides[0])].extend(together)
    return np.array(sorted(sides[0]), np.int64), np.array(sorted(sides[1]), np.int64)


def compare(
    made: Features, real: Features, labels: np.ndarray, units: Sequence[str], seed: int
) -> dict[str, Any] | None:
    """Every measure for synthetic images and for real ones, at equal size; None where there are too few of either."""
    if len(real) < LEAST_REFERENCE or len(made) < LEAST_SYNTHETIC:
        return None
    rows: list[tuple[dict[str, float], dict[str, float]]] = []
    for number in range(REPEATS):
        rng = np.random.default_rng(seed_from(seed, "split", number))
        floor, against = halves(labels, units, rng)
        count = min(len(floor), len(made))
        if min(count, len(against)) <= measures.NEIGHBOURS:  # a few large groups
            return None
        floor = rng.permutation(floor)[:count]
        drawn = rng.permutation(len(made))[:count]
        rows.append((_measured(made[drawn], real[against]), _measured(real[floor], real[against])))
    found: dict[str, Any] = {"compared": count, "against": len(against)}
    for name in rows[0][0]:
        if name != "standard_error":
            synthetic, floor_values = ([row[side][name] for row in rows] for side in (0, 1))
            found[name] = {
                "synthetic": np.mean(synthetic),
                "real": np.mean(floor_values),
                "real_sd": np.std(floor_values),
            }
    found["kid"]["standard_error"] = np.mean([row[0]["standard_error"] for row in rows])
    found["frechet"]["all"] = measures.frechet(made, real)
    found["kid"]["all"], found["kid"]["all_standard_error"] = measures.kid(made, real)
    return found


def _measured(made: Features, real: Features) -> dict[str, float]:
    value, error = measures.kid(made, real)
    found = {"frechet": measures.frechet(made, real), "kid": value, "standard_error": error}
    return found | measures.neighbourhoods(made, real) | {"vendi": measures.vendi(made)}


def _of_class(
    made: Features, real: Features, units: Sequence[str], judge: Judge | None, label: int, seed: int
) -> dict[str, Any]:
    """As overall; a Frechet distance of a few images is left out."""
    found = compare(made, real, np.zeros(len(real), np.int64), units, seed_from(seed, label))
    if found is not None and found["compared"] < LEAST_FRECHET:
        found["frechet"] = None
    agreement = _agreement(judge, made, np.full(len(made), label, np.int64))
    counts = {"images": {"measured": len(made), "reference": len(real)}}
    return {**counts, "measures": found, "agreement": agreement}


# ------------------------------------------------------------------------------------------------ judge


def _teach(real: Features, mirrored: Features, labels: np.ndarray, units: Sequence[str], seed: int) -> Judge | None:
    if not len(real):
        return None
    both = np.concatenate([real, mirrored])
    return train_judge(both, np.tile(labels, 2), [*units, *units], seed=seed_from(seed, "judge"))


def _agreement(judge: Judge | None, made: Features, targets: np.ndarray) -> dict[str, float] | None:
    if judge is None or judge.is_weak or not len(made):
        return None
    named = judge.classes[judge.score(made).argmax(axis=1)]
    return {"share": np.mean(named == targets), "probability": np.mean(class_agreement(judge, made, targets))}


def _judge_facts(judge: Judge | None, encoder: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "taught_by": "validation and test images",
        "shares_features_with_generator": encoder == AUTO,
    }
    if judge is None:
        return facts | {"held_out_accuracy": None, "held_out_low": None, "chance": None, "used": False}
    numbers = {"held_out_accuracy": judge.held_out_accuracy, "held_out_low": judge.held_out_low, "chance": judge.chance}
    return facts | numbers | {"used": not judge.is_weak}


# ------------------------------------------------------------------------------------------------ words


def _notes(encoder: str, judge: Judge | None, copies: Copies, num_reference: int) -> list[str]:
    notes = []
    if encoder == AUTO:
        notes.append(
            "the features are those of the model that drew the images, which may flatter them; name another encoder"
        )
    if num_reference < LEAST_REFERENCE:
        notes.append(
            f"{num_reference} validation and test images are too few to compare with; {LEAST_REFERENCE} are needed"
        )
    if judge is None:
        notes.append("no judge of classes: it needs two held-out images (or groups) of every class")
    elif judge.is_weak:
        right = f"{100 * judge.held_out_accuracy:.0f} % of held-out real images"
        notes.append(f"the judge of classes is right on {right} and is not listened to")
    if not copies.calibration.is_sharp:
        notes.append(
            "training images are as near to each other as altered copies are, so some copies may not be found; "
            "a group column that says what belongs together would help"
        )
    return notes


def as_text(found: Mapping[str, Any]) -> str:
    """The numbers for a terminal."""
    lines = [f"features        {found['encoder']}"]
    overall, rows = found["overall"], found["overall"]["measures"]
    if rows:
        lines.append(
            f"compared        {rows['compared']:,} images a side, against {rows['against']:,} held-out real ones"
        )
        lines.append(f"{'':<16}{'synthetic':>12}{'real':>12}")
        write: Callable[[str, float, float], str] = lambda name, one, two: f"{name:<16}{one:>12.4g}{two:>12.4g}"  # noqa: E731
        for name in ("frechet", "kid", "precision", "recall", "density", "coverage", "vendi"):
            error = f" (standard error {rows[name]['standard_error']:.2g})" if name == "kid" else ""
            lines.append(write(name, rows[name]["synthetic"], rows[name]["real"]) + error)
        if overall["diversity"]:
            lines.append(write("diversity", overall["diversity"]["synthetic"], overall["diversity"]["real"]))
    if overall["agreement"]:
        right = found["judge"]["held_out_accuracy"]
        lines.append(f"{'class agreement':<16}{100 * overall['agreement']['share']:>10.0f} %{100 * right:>10.0f} %")
    copies = found["copies"]
    kinds = f"{copies['of_source']:,} of their source, {copies['of_other']:,} of another training image"
    lines.append(f"copies          {copies['copies']:,} of {copies['images']:,} images ({kinds})")
    return "\n".join([*lines, *(f"note: {note}" for note in found["notes"])])
