"""A finished run as the report meets it: written with the store's own interface, images drawn here.

Class names and prompts are hostile on purpose; the numbers come from one seeded generator.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from variegate.recipe import Recipe
from variegate.recipe_file import dump_recipe
from variegate.records import ClassInfo, PlanRow, RealImage, content_id
from variegate.store import RunFolder, class_slug, synthetic_path

HOSTILE = (
    "<script>alert('class')</script>",
    "long " + "butterfly" * 22,
    "פרפר כחול גדול",
    'quo"te & <b>bold</b> | pipe',
    "🦋 monarch 🌼",
    "{{ 7 * 7 }}",
)
PLAIN = ("Adonis blue", "Brimstone", "Clouded yellow", "Dingy skipper")
SPLITS = (("train", 5), ("val", 3), ("test", 6))
REASONS = ("blank", "off-class")


def class_names(num: int) -> list[str]:
    return [*HOSTILE, *PLAIN, *(f"species {index:03d}" for index in range(num))][:num]


def paint(path: Path, label: int, twist: float, size: int = 64) -> None:
    """A smooth coloured disc whose hue is the class and whose place is the image."""
    y, x = np.mgrid[0:size, 0:size] / size
    disc = np.exp(-(((x - 0.35 - 0.3 * twist) ** 2 + (y - 0.5) ** 2) / 0.06))
    hue = np.array([0.5 + 0.5 * np.sin(label * 2.1 + shift) for shift in (0.0, 2.1, 4.2)])
    pixels = (1 - disc[..., None]) * (0.75 + 0.2 * y[..., None]) + disc[..., None] * hue
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8)).save(path, quality=92)


def write_dataset(folder: RunFolder, num_classes: int) -> list[RealImage]:
    names = class_names(num_classes)
    classes = [ClassInfo(label, name, class_slug(label, name)) for label, name in enumerate(names)]
    images = []
    for info in classes:
        for split, count in SPLITS:
            for index in range(count):
                path = f"data/{split}/{info.slug}/{index}.jpg"
                paint(folder.root / path, info.label, index / count)
                images.append(RealImage(content_id(path), path, info.label, split, width=64, height=64))
    folder.put_dataset(classes, images)
    line = f"{len(images)} images of {num_classes} classes"
    warnings = ["class 3 <i>has</i> few test images", "one image is in train and val"]
    duplicates = [{"kept": ["test/b.jpg"], "left_out": ["train/<a>.jpg"], "class_names": [names[0]]}]
    unreadable = [{"name": "train/<broken>.jpg", "reason": "truncated"}]
    summary = {"line": line, "warnings": warnings, "duplicates": duplicates, "unreadable": unreadable}
    folder.finish_stage("dataset", "k", 1.25, summary)
    folder.finish_stage("adapt", "k", 0.01, {"line": "nothing to learn: the model draws as it is", "method": "none"})
    folder.finish_stage("prompts", "k", 0.02, {"line": f"{num_classes} prompts"})
    return folder.real_images("train")


def plan(sources: list[RealImage], num_classes: int, *, from_text: bool) -> list[PlanRow]:
    rows = []
    for source in sources:
        for index in range(4):
            target = (source.label + index) % num_classes if index > 1 and not from_text else source.label
            origin = None if from_text else source.id
            name = class_names(num_classes)[target]
            strength = 1.0 if from_text else (0.3, 0.5, 0.7, 0.9)[index]
            image_id = content_id(source.id, index)
            row = len(rows)
            rows.append(
                PlanRow(row, image_id, row // 32, origin, target, f"a photo of a {name}", "", strength, 12, row)
            )
    return rows


def write_synthetic(folder: RunFolder, sources: list[RealImage], num_classes: int, *, from_text: bool = False) -> None:
    rows = plan(sources, num_classes, from_text=from_text)
    texts = {text: index for index, text in enumerate(sorted({row.prompt for row in rows} | {""}))}
    classes = folder.classes()
    chunks = sorted({row.chunk for row in rows})
    with folder.transaction() as db:
        db.executemany("INSERT INTO prompts VALUES (?, ?)", ((index, text) for text, index in texts.items()))
        values = (
            (r.row, r.id, r.chunk, r.source, r.target, texts[r.prompt], texts[""], r.strength, r.steps, r.seed)
            for r in rows
        )
        db.executemany("INSERT INTO plan VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, '', '')", values)
        sizes = ((chunk, chunk * 32, sum(row.chunk == chunk for row in rows), "done", 1.0, "") for chunk in chunks)
        db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)", sizes)
    for row in rows:
        paint(folder.path(synthetic_path(classes[row.target], row.id)), row.target, row.strength)
    folder.put_scores("class-agreement", ((row.id, ((row.row * 37) % 100) / 100) for row in rows))
    folder.put_decisions("curate", (decision(row) for row in rows))
    folder.finish_stage("generate", "k", 34.5, {"line": f"{len(rows)} images drawn", "images_per_second": 5.8})
    folder.finish_stage("refine", "k", 0.0, {"line": "nothing to refine", "refined": 0})
    folder.finish_stage("curate", "k", 4.0, {"line": "some kept, some dropped"})


def decision(row: PlanRow) -> tuple[str, str, float, str]:
    agreement = ((row.row * 37) % 100) / 100
    if row.row % 23 == 0:
        return row.id, "drop", 0.0, REASONS[0]
    if agreement < 0.2:
        return row.id, "drop", 0.0, REASONS[1]
    return row.id, "keep", max(agreement, 0.25), "off-class"


def arm_results(arm: str, base: float, num_classes: int, rng: np.random.Generator) -> dict:
    seeds = []
    for seed in range(3):
        values = (base + rng.normal(0, 0.015, 4)).round(4).tolist()
        selected = {"step": 270 - 30 * seed, "val_accuracy": values[0], "test_accuracy": values[1]}
        last = {"step": 300, "val_accuracy": values[2], "test_accuracy": values[3]}
        seeds.append({"seed": seed, "steps": 300, "selected": selected, "last": last})
    per_class = np.clip(base + rng.normal(0, 0.12, num_classes), 0.1, 0.98).round(4)
    confusion = rng.multinomial(50, np.full(num_classes, 1 / num_classes), size=num_classes)
    confusion = (confusion * (1 - per_class)[:, None]).astype(int)
    confusion[np.diag_indices(num_classes)] = (50 * per_class).astype(int)
    means = [float(np.mean([seed[kind]["test_accuracy"] for seed in seeds])) for kind in ("selected", "last")]
    return {
        "arm": arm,
        "seeds": seeds,
        "selected": {"accuracy": means[0], "low": means[0] - 0.0321, "high": means[0] + 0.0321},
        "last": {"accuracy": means[1], "low": means[1] - 0.0284, "high": means[1] + 0.0284},
        "per_class": per_class.tolist(),
        "confusion": confusion.tolist(),
        "ece": 0.0731,
        "groups": {"meadow": base - 0.0111, "<u>forest</u>": base - 0.1357},
        "worst_group": base - 0.1357,
        "shots": {kind: found(base + step) for kind, step in SHOTS.items()},
        "worst_cell": {"label": 1, "group": "<u>forest</u>", "images": 12, "accuracy": base - 0.2},
    }


SHOTS = {"many": 0.1, "medium": 0.0, "few": -0.2}
GROUPS = {
    "least_images": 10,
    "images": {"<u>forest</u>": 30, "meadow": 27, "bog": 3},
    "cells": [
        {"label": 0, "group": "meadow", "images": 27},
        {"label": 1, "group": "<u>forest</u>", "images": 12},
        {"label": 2, "group": "bog", "images": 3},
    ],
}


def found(value: float, key: str = "accuracy") -> dict:
    return {key: value, "low": value - 0.05, "high": value + 0.05}


def extra_test(arms: list[dict]) -> dict:
    entries = [{"arm": arm["arm"], "seeds": [], "selected": found(arm["selected"]["accuracy"] - 0.1)} for arm in arms]
    gap = {"arm": arms[1]["arm"], "baseline": arms[0]["arm"], "selected": found(0.0444, "difference")}
    return {
        "split": "test_uncommon_context",
        "title": "uncommon context",
        "images": 90,
        "arms": entries,
        "comparisons": [gap],
        "verdict": "No difference seen there.",
    }


def make_results(num_classes: int) -> dict:
    rng = np.random.default_rng(7)
    arms = [arm_results("real", 0.6123, num_classes, rng), arm_results("real+synthetic", 0.6789, num_classes, rng)]
    difference = {kind: arms[1][kind]["accuracy"] - arms[0][kind]["accuracy"] for kind in ("selected", "last")}
    comparison = {
        "arm": "real+synthetic",
        "baseline": "real",
        "selected": {"difference": difference["selected"], "low": 0.0213, "high": 0.1087},
        "last": {"difference": difference["last"], "low": -0.0117, "high": 0.0931},
        "detectable": 0.0437,
        "per_class": [after - before for before, after in zip(arms[0]["per_class"], arms[1]["per_class"], strict=True)],
        "shots": {kind: found(step / 10, "difference") for kind, step in SHOTS.items()},
        "groups": {"meadow": found(0.0666, "difference"), "<u>forest</u>": found(0.0566, "difference")},
        "verdict": "Synthetic images helped: the whole interval lies above zero.",
    }
    classes = {"many": 2, "medium": 1, "few": num_classes - 3}
    return {
        "schema": 1,
        "variegate": "0.1.0",
        "data": "builtin:meadow",
        "classes": class_names(num_classes),
        "arms": arms,
        "comparisons": [comparison],
        "shots": {"bounds": [20, 100]} | {kind: {"classes": n, "training_images": 9} for kind, n in classes.items()},
        "groups": GROUPS,
        "extra_tests": [extra_test(arms)],
        "warnings": ["only 3 seeds: <b>wide</b> intervals"],
        "verdict": "Adding the synthetic images made the classifier better, by 6.6 points on the test images.",
    }


def feature_space(num_classes: int) -> dict:
    """Clouds of the classes on a ring, synthetic ones wider and of more images than are drawn."""
    rng = np.random.default_rng(5)

    def cloud(count: int, spread: float) -> list[list[float]]:
        labels = np.arange(count) % num_classes
        angle = 2 * np.pi * labels / num_classes
        places = np.stack([4 * np.cos(angle), 2.5 * np.sin(angle)], axis=1) + rng.normal(0, spread, (count, 2))
        return [[*place, label] for place, label in zip(places.round(4).tolist(), labels.tolist(), strict=True)]

    sizes = {"real": (50, 0.25, 50), "synthetic": (200, 0.6, 4321), "validation": (30, 0.5, 30)}
    kinds = {name: {"total": total, "points": cloud(count, spread)} for name, (count, spread, total) in sizes.items()}
    return {"arm": "real", "seed": 0, "explained": [0.41, 0.22], "kinds": kinds}


def write_results(folder: RunFolder, num_classes: int) -> dict:
    results = make_results(num_classes)
    images = folder.synthetic_images(kept_only=False)
    kept = sum(image.action == "keep" for image in images)
    results["synthetic"] = {"drawn": len(images), "kept": kept}
    folder.write("results.json", json.dumps(results))
    rng = np.random.default_rng(3)
    for arm in results["arms"]:
        for seed in arm["seeds"]:
            lines = [
                {"step": step, "loss": 2.3 * 0.99**step + abs(rng.normal(0, 0.1)), "lr": 1e-3} for step in range(1, 301)
            ]
            final = seed["last"]["val_accuracy"]
            lines += [{"step": step, "val_accuracy": final * (1 - 0.96 ** (step / 3))} for step in range(30, 301, 30)]
            path = f"train/{arm['arm'].replace('+', '-')}/seed-{seed['seed']}/log.jsonl"
            folder.write(path, "".join(json.dumps(line) + "\n" for line in lines))
    folder.write("train/feature-space.json", json.dumps(feature_space(num_classes)))
    tasks = [
        {"arm": arm["arm"], "seed": seed["seed"], "seconds": 20.5} for arm in results["arms"] for seed in arm["seeds"]
    ]
    folder.finish_stage("train", "k", 126.0, {"line": "6 classifiers trained", "tasks": tasks})
    folder.finish_stage("evaluate", "k", 2.0, {"line": results["verdict"]})
    return results


def write_run(root: Path, num_classes: int = 10, *, from_text: bool = False, until: str = "evaluate", **recipe) -> Path:
    """A run folder that went as far as `until`: dataset, generate or evaluate."""
    recipe = {"curate": [{"score": "blank"}, {"score": "class-agreement", "policy": "weight"}]} | recipe
    with RunFolder.create(root) as folder:
        folder.write("recipe.yaml", dump_recipe(Recipe.model_validate(recipe)))
        environment = {"python": "3.11.9", "cores": 2, "packages": {"torch": "2.15.0", "diffusers": "0.42.0"}}
        folder.write("env.json", json.dumps(environment))
        sources = write_dataset(folder, num_classes)
        if until != "dataset" and recipe.get("generate", {}).get("method") != "none":
            write_synthetic(folder, sources, num_classes, from_text=from_text)
        if until == "evaluate":
            write_results(folder, num_classes)
    return root
