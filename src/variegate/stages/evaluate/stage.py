"""Read what every classifier predicted for the test images; write accuracies and differences, results.json and .csv."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from variegate import __version__
from variegate.errors import DataError, Problem
from variegate.pipeline import STAGES, Context
from variegate.recipe import ArmSection, Recipe
from variegate.records import RealImage, extra_tests
from variegate.stages.evaluate import metrics, results
from variegate.stages.evaluate.results import ArmOutcome, SeedOutcome, TestSet
from variegate.stages.evaluate.table import csv_text
from variegate.store import RunFolder

NAME = "evaluate"
RESULTS, TABLE = "results.json", "results.csv"
ONE_SEED = "one seed only: intervals cover other test images, not other seeds"


def inputs(recipe: Recipe) -> dict[str, Any]:
    """What the comparison depends on besides the trained classifiers."""
    return {"evaluate": recipe.evaluate.model_dump(), "data": recipe.dataset.path}


def run(context: Context) -> dict[str, Any]:
    """Write results.json and results.csv; returns the counted line, the verdict and warnings."""
    recipe, folder = context.recipe, context.folder
    real, classes = folder.real_images(), folder.classes()
    counts = results.counts_by_split(real, len(classes))["train"]
    shots = metrics.shot_classes(counts, recipe.evaluate.shot_bounds)
    splits = ["test", *extra_tests(image.split for image in real)]
    test, *extra = (_read_test(folder, recipe, split, shots) for split in splits)
    found = results.assemble(
        version=__version__,
        data=recipe.dataset.path,
        classes=classes,
        real=real,
        synthetic=folder.synthetic_images(kept_only=False),
        agreement=_agreement(folder),
        test=test,
        extra=extra,
        bounds=recipe.evaluate.shot_bounds,
        warnings=_warnings(recipe, folder),
    )
    found["cost"] = results.rounded(
        results.cost_of({stage: folder.stage(stage) for stage in STAGES[: STAGES.index(NAME)]}, found)
    )
    folder.write(RESULTS, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    folder.write(TABLE, csv_text(found))
    for name in (RESULTS, TABLE):
        folder.put_artefact(NAME, name, name)
    return {"line": results.line(found), "verdict": found["verdict"], "warnings": found["warnings"]}


def _read_test(folder: RunFolder, recipe: Recipe, split: str, shots: dict[str, list[int]] | None) -> TestSet:
    """One test set with every arm's predictions; raises DataError where it is too small to say anything."""
    images = folder.real_images(split)
    if len(images) < 2:
        text = f"there are {len(images)} {split} images; an interval needs at least 2"
        raise DataError(Problem(NAME, text, "add some" if split == "test" else f"add some, or take {split} out"))
    arms = [
        ArmOutcome(arm.name, read_seeds(folder, arm, range(recipe.evaluate.seeds), split, images))
        for arm in recipe.evaluate.arm_sections
    ]
    return TestSet(split, images, arms, shots)


def read_seeds(
    folder: RunFolder, arm: ArmSection, seeds: Iterable[int], split: str, test: Sequence[RealImage]
) -> tuple[SeedOutcome, ...]:
    """What an arm's classifiers said of the images `test`; raises DataError where they were shown others."""
    return tuple(_read_seed(folder, arm, seed, split, test) for seed in seeds)


def _read_seed(folder: RunFolder, arm: ArmSection, seed: int, split: str, test: Sequence[RealImage]) -> SeedOutcome:
    home = folder.path(f"{arm.folder}/seed-{seed}")
    closing = json.loads((home / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    table = pq.read_table(home / "predictions.parquet")
    val_accuracy: dict[str, float | None] = {}
    probabilities = {}
    for weights in results.WEIGHTS:
        _, labels, found = _rows(table, "val", weights)
        val_accuracy[weights] = float(np.mean(metrics.is_correct(found, labels))) if len(labels) else None
        ids, labels, found = _rows(table, split, weights)
        if ids != [image.id for image in test]:
            what = f"holds {len(ids)} {split} images and the run has {len(test)}, or others"
            raise DataError(Problem(str(home / "predictions.parquet"), what, "run train again"))
        probabilities[weights] = found
    return SeedOutcome(seed, closing["steps"], closing["selected_step"], val_accuracy, probabilities)


def _rows(table: pa.Table, split: str, weights: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """ids, labels int64 [N] and probabilities float64 [N, C], in file order."""
    chosen = table.filter((pc.field("split") == split) & (pc.field("weights") == weights))
    ids, labels = chosen["id"].to_pylist(), chosen["label"].to_numpy().astype(np.int64)
    flat = np.asarray(chosen["probabilities"].combine_chunks().flatten(), np.float64)
    return ids, labels, flat.reshape(len(ids), -1) if ids else np.empty((0, 0))


def _agreement(folder: RunFolder) -> list[dict[str, Any]] | None:
    """What classifiers of the real images alone take the drawn ones for, class by class."""
    done = folder.stage("train")
    return (done[1].get("class_agreement") if done else None) or None


def _warnings(recipe: Recipe, folder: RunFolder) -> list[str]:
    """What earlier stages warned of, and what limits this comparison."""
    warnings: list[str] = []
    for stage in STAGES[: STAGES.index(NAME)]:
        done = folder.stage(stage)
        warnings += done[1].get("warnings", []) if done else []
    if recipe.evaluate.seeds == 1:
        warnings.append(ONE_SEED)
    return list(dict.fromkeys(warnings))
