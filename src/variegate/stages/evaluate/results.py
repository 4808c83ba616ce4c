"""results.json: everything a run found, as plain data. Equal runs give equal bytes: no times, no dates, 6 digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from variegate.records import ClassInfo, RealImage, SyntheticImage
from variegate.stages.evaluate import metrics
from variegate.stages.evaluate.compare import Interval, in_words, two_way_interval, verdict

SCHEMA = 1
DIGITS = 6
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


def baseline_of(arms: Sequence[str]) -> str:
    """What the others are compared with: real where it is there."""
    return "real" if "real" in arms else arms[0]


def summarise_arm(outcome: ArmOutcome, labels: np.ndarray, groups: Sequence[str | None]) -> dict[str, Any]:
    """One entry of `arms`."""
    entry: dict[str, Any] = {"arm": outcome.arm, "seeds": [_seed_entry(seed, labels) for seed in outcome.seeds]}
    for weights in WEIGHTS:
        interval = two_way_interval(outcome.correct(weights, labels))
        low, high = max(interval.low, 0.0), min(interval.high, 1.0)
        entry[weights] = {"accuracy": interval.mean, "low": low, "high": high}
    found = [seed.test["selected"] for seed in outcome.seeds]
    confusion = np.sum([metrics.confusion_matrix(one, labels) for one in found], axis=0)
    by_group = metrics.group_accuracy(outcome.correct("selected", labels), groups)
    return entry | {
        "per_class": metrics.per_class_accuracy(confusion),
        "macro": metrics.macro_accuracy(confusion),
        "confusion": confusion.tolist(),
        "ece": float(np.mean([metrics.expected_calibration_error(one, labels) for one in found])),
        "groups": by_group,
        "worst_group": min(by_group.values()) if by_group else None,
    }


def compare_arms(outcome: ArmOutcome, baseline: ArmOutcome, labels: np.ndarray) -> dict[str, Any]:
    """One entry of `comparisons`: differences on the same seeds and the same test images."""
    intervals = {w: two_way_interval(outcome.correct(w, labels) - baseline.correct(w, labels)) for w in WEIGHTS}
    entry: dict[str, Any] = {"arm": outcome.arm, "baseline": baseline.arm}
    for weights, interval in intervals.items():
        entry[weights] = {"difference": interval.mean, "low": interval.low, "high": interval.high}
    gaps = (outcome.correct("selected", labels) - baseline.correct("selected", labels)).mean(axis=0)
    num_classes = outcome.seeds[0].test["selected"].shape[1]
    members = [labels == label for label in range(num_classes)]
    return entry | {
        "detectable": intervals["selected"].detectable,
        "per_class": [float(gaps[chosen].mean()) if chosen.any() else None for chosen in members],
        "verdict": verdict(intervals["selected"]),
    }


def counts_by_split(images: Sequence[RealImage], num_classes: int) -> dict[str, list[int]]:
    """Real images of each class in train, val and test."""
    found = Counter((image.split, image.label) for image in images)
    return {split: [found[split, label] for label in range(num_classes)] for split in ("train", "val", "test")}


def synthetic_facts(images: Sequence[SyntheticImage], num_classes: int) -> dict[str, Any]:
    """How many were drawn, kept, and dropped for which reason."""
    kept = Counter(image.target for image in images if image.action == "keep")
    dropped = Counter(image.reason or "no reason given" for image in images if image.action == "drop")
    return {
        "drawn": len(images),
        "kept": sum(kept.values()),
        "dropped": {reason: dropped[reason] for reason in sorted(dropped)},
        "per_class": [kept[label] for label in range(num_classes)],
    }


def assemble(
    *,
    version: str,
    data: str,
    classes: Sequence[ClassInfo],
    real: Sequence[RealImage],
    synthetic: Sequence[SyntheticImage],
    arms: Sequence[ArmOutcome],
    test: Sequence[RealImage],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """The whole of results.json."""
    labels = np.array([image.label for image in test], np.int64)
    groups = [image.group for image in test]
    base = baseline_of([outcome.arm for outcome in arms])
    baseline = next(outcome for outcome in arms if outcome.arm == base)
    entries = [summarise_arm(outcome, labels, groups) for outcome in arms]
    comparisons = [compare_arms(outcome, baseline, labels) for outcome in arms if outcome.arm != base]
    return rounded(
        {
            "schema": SCHEMA,
            "variegate": version,
            "data": data,
            "classes": [info.name for info in classes],
            "counts": counts_by_split(real, len(classes)),
            "synthetic": synthetic_facts(synthetic, len(classes)),
            "arms": entries,
            "comparisons": comparisons,
            "warnings": list(warnings),
            "verdict": answer(entries, comparisons),
        }
    )


def answer(arms: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """The run's result in one sentence."""
    if not comparisons:
        only = arms[0]["selected"]
        low, high = (f"{100 * only[key]:.1f}" for key in ("low", "high"))
        reached = f"{100 * only['accuracy']:.1f} % (95 % {low} to {high})"
        return f"{arms[0]['arm']} alone reaches {reached}; nothing to compare with."
    reached = {arm["arm"]: f"{100 * arm['selected']['accuracy']:.1f} %" for arm in arms}
    return " ".join(_sentence(entry, reached) for entry in comparisons)


def _sentence(entry: Mapping[str, Any], reached: Mapping[str, str]) -> str:
    """One comparison in words, with what both arms reached."""
    arm, baseline = entry["arm"], entry["baseline"]
    opening, _, rest = str(entry["verdict"]).partition(": ")
    subject = "Synthetic images alone" if arm == "synthetic" else "Synthetic images"
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


def rounded(value: Any) -> Any:
    """Every float to 6 digits, inside lists and dicts too."""
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0  # no -0.0
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return value


def _seed_entry(seed: SeedOutcome, labels: np.ndarray) -> dict[str, Any]:
    entry: dict[str, Any] = {"seed": seed.seed, "steps": seed.steps}
    for weights, step in (("selected", seed.selected_step), ("last", seed.steps)):
        accuracy = float(np.mean(metrics.is_correct(seed.test[weights], labels)))
        entry[weights] = {"step": step, "val_accuracy": seed.val_accuracy[weights], "test_accuracy": accuracy}
    return entry
