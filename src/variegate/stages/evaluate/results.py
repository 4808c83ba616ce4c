"""results.json: everything a run found, as plain data. Equal runs give equal bytes but for `cost`: no dates, 6 digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from variegate.records import ClassInfo, RealImage, SyntheticImage, extra_tests, rounded
from variegate.stages.evaluate import metrics
from variegate.statistics import Interval, in_words, two_way_interval, verdict

SCHEMA = 1
WEIGHTS = ("selected", "last")


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """What one trained classifier said of the test images, and where its weights came from."""

    seed: int
    steps: int
    selected_step: int
    val_accuracy: Mapping[str, float | None]  # by weights; None without validation images
    test: Mapping[str, np.ndarray]  # by weights: float32 probabilities [N, C], images in one order for all


@dataclass(frozen=True, slots=True)
class ArmOutcome:
    """All seeds of one arm, in order."""

    arm: str
    seeds: tuple[SeedOutcome, ...]

    def correct(self, weights: str, labels: np.ndarray) -> np.ndarray:
        """float64 [seeds, N]."""
        return np.stack([metrics.is_correct(seed.test[weights], labels) for seed in self.seeds]).astype(np.float64)


@dataclass(frozen=True, slots=True)
class TestSet:
    """One test set and what every arm said of it."""

    split: str
    images: Sequence[RealImage]
    arms: Sequence[ArmOutcome]
    shots: Mapping[str, Sequence[int]] | None  # labels of many-, medium- and few-shot classes; metrics.shot_classes

    @property
    def labels(self) -> np.ndarray:
        """int64 [N]."""
        return np.array([image.label for image in self.images], np.int64)

    @property
    def groups(self) -> list[str | None]:
        return [image.group for image in self.images]


def baseline_of(arms: Sequence[str]) -> str:
    """What the others are compared with: real where it is there."""
    return "real" if "real" in arms else arms[0]


def summarise_arm(outcome: ArmOutcome, test: TestSet) -> dict[str, Any]:
    """One entry of `arms`."""
    labels = test.labels
    entry: dict[str, Any] = {"arm": outcome.arm, "seeds": [_seed_entry(seed, labels) for seed in outcome.seeds]}
    for weights in WEIGHTS:
        entry[weights] = _accuracy(outcome.correct(weights, labels))
    found, correct = [seed.test["selected"] for seed in outcome.seeds], outcome.correct("selected", labels)
    confusion = np.sum([metrics.confusion_matrix(one, labels) for one in found], axis=0)
    by_group = metrics.group_accuracy(correct, test.groups)
    return entry | {
        "per_class": metrics.per_class_accuracy(confusion),
        "macro": metrics.macro_accuracy(confusion),
        "confusion": confusion.tolist(),
        "ece": float(np.mean([metrics.expected_calibration_error(one, labels) for one in found])),
        "shots": {kind: _accuracy(values) for kind, values in _by_shots(correct, test).items()} or None,
        "groups": by_group,
        "worst_group": min(by_group.values()) if by_group else None,
        **_cell_entries(correct, test),
    }


def _cell_entries(correct: np.ndarray, test: TestSet) -> dict[str, Any]:
    """Accuracy of every (class, group), and the worst of those with enough images."""
    accuracies = metrics.cell_accuracy(correct, test.labels, test.groups)
    sizes = metrics.cell_sizes(test.labels, test.groups)
    large: list[dict[str, Any]] = [
        {"label": label, "group": group, "images": size, "accuracy": accuracy}
        for ((label, group), size), accuracy in zip(sizes.items(), accuracies, strict=True)
        if size >= metrics.MIN_GROUP_IMAGES
    ]
    worst = min(large, key=lambda cell: cell["accuracy"]) if len(large) > 1 else None
    return {"cells": accuracies or None, "worst_cell": worst}


def compare_arms(outcome: ArmOutcome, baseline: ArmOutcome, test: TestSet) -> dict[str, Any]:
    """One entry of `comparisons`: differences on the same seeds and the same test images."""
    labels = test.labels
    gaps = {w: outcome.correct(w, labels) - baseline.correct(w, labels) for w in WEIGHTS}
    intervals = {w: two_way_interval(values) for w, values in gaps.items()}
    entry: dict[str, Any] = {"arm": outcome.arm, "baseline": baseline.arm}
    for weights in WEIGHTS:
        entry[weights] = _difference(gaps[weights])
    num_classes = outcome.seeds[0].test["selected"].shape[1]
    members = [labels == label for label in range(num_classes)]
    per_image = gaps["selected"].mean(axis=0)
    large = metrics.group_accuracy(gaps["selected"], test.groups) or {}
    named = np.array([group or "" for group in test.groups])
    return entry | {
        "detectable": intervals["selected"].detectable,
        "per_class": [float(per_image[chosen].mean()) if chosen.any() else None for chosen in members],
        "shots": {kind: _difference(values) for kind, values in _by_shots(gaps["selected"], test).items()} or None,
        "groups": {name: _difference(gaps["selected"][:, named == name]) for name in large} or None,
        "verdict": verdict(intervals["selected"]),
    }


def _by_shots(values: np.ndarray, test: TestSet) -> dict[str, np.ndarray]:
    """`values` [seeds, N] cut into many, medium and few [seeds, n]; the mean of each counts every class the same."""
    found = {}
    for kind, members in (test.shots or {}).items():
        shares = metrics.class_shares(test.labels, members)
        if np.count_nonzero(shares) > 1:
            found[kind] = (values * shares)[:, shares > 0]
    return found


def _accuracy(correct: np.ndarray) -> dict[str, float]:
    """Mean and interval of values [seeds, N] inside [0, 1]."""
    interval = two_way_interval(correct)
    return {"accuracy": interval.mean, "low": max(interval.low, 0.0), "high": min(interval.high, 1.0)}


def _difference(gaps: np.ndarray) -> dict[str, float]:
    interval = two_way_interval(gaps)
    return {"difference": interval.mean, "low": interval.low, "high": interval.high}


def shot_facts(test: TestSet, counts: Sequence[int], bounds: tuple[int, int]) -> dict[str, Any] | None:
    """How many classes and real training images are many-, medium- and few-shot; None where there is no long tail."""
    if test.shots is None:
        return None
    groups = {
        kind: {"classes": len(members), "training_images": sum(counts[label] for label in members)}
        for kind, members in test.shots.items()
    }
    return {"bounds": list(bounds), **groups}


def group_facts(test: TestSet) -> dict[str, Any] | None:
    """Test images of each group and of each (class, group) cell; those too small to be called worst are among them."""
    sizes = metrics.group_sizes(test.groups)
    if not sizes:
        return None
    cells = metrics.cell_sizes(test.labels, test.groups)
    return {
        "least_images": metrics.MIN_GROUP_IMAGES,  # a smaller group or cell is reported, but never as the worst
        "images": sizes,
        "cells": [{"label": label, "group": group, "images": size} for (label, group), size in cells.items()],
    }


def summarise_test(test: TestSet) -> dict[str, Any]:
    """`arms` and `comparisons` of one test set."""
    base = baseline_of([outcome.arm for outcome in test.arms])
    baseline = next(outcome for outcome in test.arms if outcome.arm == base)
    return {
        "arms": [summarise_arm(outcome, test) for outcome in test.arms],
        "comparisons": [compare_arms(outcome, baseline, test) for outcome in test.arms if outcome.arm != base],
    }


def summarise_extra(test: TestSet) -> dict[str, Any]:
    """One entry of `extra_tests`: everything the test set proper has, under its own name."""
    found = summarise_test(test)
    return {
        "split": test.split,
        "title": test.split.removeprefix("test_").replace("_", " "),
        "images": len(test.images),
        **found,
        "groups": group_facts(test),
        "verdict": answer(found["arms"], found["comparisons"]),
    }


def counts_by_split(images: Sequence[RealImage], num_classes: int) -> dict[str, list[int]]:
    """Real images of each class in train, val, test and extra test sets."""
    found = Counter((image.split, image.label) for image in images)
    splits = ("train", "val", "test", *extra_tests(image.split for image in images))
    return {split: [found[split, label] for label in range(num_classes)] for split in splits}


def synthetic_facts(
    images: Sequence[SyntheticImage], num_classes: int, agreement: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """How many were drawn, kept, and dropped for which reason, and what their classes are taken for."""
    kept = Counter(image.target for image in images if image.action == "keep")
    dropped = Counter(image.reason or "no reason given" for image in images if image.action == "drop")
    return {
        "drawn": len(images),
        "kept": sum(kept.values()),
        "dropped": {reason: dropped[reason] for reason in sorted(dropped)},
        "per_class": [kept[label] for label in range(num_classes)],
        "class_agreement": agreement,
    }


def assemble(
    *,
    version: str,
    data: str,
    classes: Sequence[ClassInfo],
    real: Sequence[RealImage],
    synthetic: Sequence[SyntheticImage],
    agreement: Sequence[Mapping[str, Any]] | None,
    test: TestSet,
    extra: Sequence[TestSet],
    bounds: tuple[int, int],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The whole of results.json."""
    counts, found = counts_by_split(real, len(classes)), summarise_test(test)
    return rounded(
        {
            "schema": SCHEMA,
            "variegate": version,
            "data": data,
            "classes": [info.name for info in classes],
            "counts": counts,
            "synthetic": synthetic_facts(synthetic, len(classes), agreement),
            **found,
            "shots": shot_facts(test, counts["train"], bounds),
            "groups": group_facts(test),
            "extra_tests": [summarise_extra(one) for one in extra],
            "warnings": list(warnings),
            "verdict": answer(found["arms"], found["comparisons"]),
        }
    )


def cost_of(
    stages: Mapping[str, tuple[str, Mapping[str, Any], float] | None], found: Mapping[str, Any]
) -> dict[str, Any]:
    """What a run has taken up to here: by stage, and what was counted; None where the machine or the stage does not tell.

    `stages` are the finished ones as (key, summary, seconds), `found` the rest of results.json. Memory in MB, energy in J.
    """
    said = {name: done[1] for name, done in stages.items() if done}
    told = ("peak_memory_mb", "worker_memory_mb", "gpu_memory_mb", "energy_j")
    rows = [
        {"stage": name, "seconds": done[2], **{key: (done[1].get("cost") or {}).get(key) for key in told}}
        for name, done in stages.items()
        if done
    ]
    energy = [row["energy_j"] for row in rows if row["energy_j"] is not None]
    return {
        "stages": rows,
        "seconds": sum(row["seconds"] for row in rows),
        "energy_j": sum(energy) if energy else None,
        "unet_evaluations": said.get("generate", {}).get("unet_evaluations"),
        "images_learned_from": said.get("adapt", {}).get("images_seen", 0),
        "images_made": found["synthetic"]["drawn"],
        "images_kept": found["synthetic"]["kept"],
        "classifier_steps": sum(task["steps"] for task in said.get("train", {}).get("tasks", ())),
    }


def answer(arms: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The run's result in one sentence."""
    if not comparisons:
        only = arms[0]["selected"]
        low, high = (f"{100 * only[key]:.1f}" for key in ("low", "high"))
        accuracy = f"{100 * only['accuracy']:.1f} % (95 % {low} to {high})"
        return f"{arms[0]['arm']} alone reaches {accuracy}; nothing to compare with."
    reached = {arm["arm"]: f"{100 * arm['selected']['accuracy']:.1f} %" for arm in arms}
    return " ".join(_sentence(entry, reached) for entry in comparisons)


def _sentence(entry: Mapping[str, Any], reached: Mapping[str, str]) -> str:
    """One comparison in words, with what both arms reached."""
    arm, baseline = entry["arm"], entry["baseline"]
    opening, _, rest = str(entry["verdict"]).partition(": ")
    subject = {"synthetic": "Synthetic images alone", "real+synthetic": "Synthetic images"}.get(arm, arm)
    if opening == "no difference seen":
        return f"No difference seen between {baseline} ({reached[baseline]}) and {arm} ({reached[arm]}): {rest}."
    verb = "helped" if opening == "helps" else "hurt"
    return f"{subject} {verb}: {reached[baseline]} became {reached[arm]}, {rest}."


def line(results: Mapping[str, Any]) -> str:
    """The counted line of the stage."""
    accuracies = ", ".join(f"{arm['arm']} {100 * arm['selected']['accuracy']:.1f} %" for arm in results["arms"])
    seeds = len(results["arms"][0]["seeds"])
    words = []
    for entry in results["comparisons"]:
        found = entry["selected"]
        interval = Interval(found["difference"], found["low"], found["high"], entry["detectable"], seeds)
        name = f"{entry['arm']} " if len(results["comparisons"]) > 1 else ""
        words.append(name + in_words(interval) + (", no difference seen" if interval.is_zero_inside else ""))
    return ": ".join(part for part in (accuracies, "; ".join(words)) if part)


def _seed_entry(seed: SeedOutcome, labels: np.ndarray) -> dict[str, Any]:
    entry: dict[str, Any] = {"seed": seed.seed, "steps": seed.steps}
    for weights, step in (("selected", seed.selected_step), ("last", seed.steps)):
        accuracy = float(np.mean(metrics.is_correct(seed.test[weights], labels)))
        entry[weights] = {"step": step, "val_accuracy": seed.val_accuracy[weights], "test_accuracy": accuracy}
    return entry
