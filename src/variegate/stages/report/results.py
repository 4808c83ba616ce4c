"""results.json and the training logs as records: arms, comparisons, most frequent mistakes, learning curves.

Pure apart from `read_curves`. Numbers are taken over as they are; NaN (a class without test images) becomes None.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from variegate.records import arm_folder
from variegate.stages.report.contents import (
    Arm,
    Cell,
    Checkpoint,
    ClassChange,
    Comparison,
    Confused,
    Curve,
    FeatureSpace,
    Groups,
    ImagesInSpace,
    Interval,
    Points,
    SeedResult,
    Slice,
)

NUM_CONFUSED = 8
MAX_POINTS = 120  # a curve: more than a screen can show


def number(value: Any) -> float | None:
    """A finite float, or None for null and NaN."""
    return float(value) if value is not None and math.isfinite(value) else None


def arms(results: Mapping[str, Any], tasks: Iterable[Mapping[str, Any]] = ()) -> tuple[Arm, ...]:
    """The arms in the order of results.json; `tasks` are the train stage's, for their seconds."""
    seconds = {(task["arm"], task["seed"]): number(task.get("seconds")) for task in tasks}
    return tuple(_arm(position, entry, seconds) for position, entry in enumerate(results.get("arms", ())))


def comparisons(results: Mapping[str, Any]) -> tuple[Comparison, ...]:
    """Paired differences, each with its classes sorted by change."""
    names = results.get("classes", ())
    per_class = {entry["arm"]: entry.get("per_class") or () for entry in results.get("arms", ())}
    return tuple(_comparison(entry, names, per_class) for entry in results.get("comparisons", ()))


def shots(results: Mapping[str, Any]) -> tuple[Slice, ...]:
    """Many-, medium- and few-shot classes; empty where the training set has no long tail."""
    facts = results.get("shots")
    if not facts:
        return ()
    low, high = facts["bounds"]
    ranges = {"many": f"more than {high:,}", "medium": f"{low:,} to {high:,}", "few": f"fewer than {low:,}"}

    def of_kind(kind: str, entry: Mapping[str, Any]) -> Any:
        return (entry.get("shots") or {}).get(kind)

    found = []
    for kind, words in ranges.items():
        if kind in facts:
            size = facts[kind]["classes"]
            note = f"{size:,} class{'es' * (size != 1)} of {words} training images"
            found.append(_slice(results, kind, None, partial(of_kind, kind), note))
    return tuple(found)


def extra_tests(results: Mapping[str, Any]) -> tuple[Slice, ...]:
    """Extra test sets, each as a whole."""
    return tuple(
        _slice(one, f"test: {one['title']}", one["images"], lambda entry: entry["selected"])
        for one in results.get("extra_tests") or ()
    )


def groups(results: Mapping[str, Any]) -> Groups | None:
    """Groups of test images; None where the data has none."""
    facts, entries, names = results.get("groups"), results.get("arms", ()), results.get("classes", ())
    if not facts:
        return None
    sizes, least = facts["images"], facts["least_images"]
    large = [name for name, size in sizes.items() if size >= least]
    large = large if len(large) > 1 else []  # one group is no comparison, and evaluate gives none

    def found(name: str, entry: Mapping[str, Any]) -> Any:
        value = (entry.get("groups") or {}).get(name)
        return value if isinstance(value, Mapping) else {"accuracy": value}

    worst = [(entry["arm"], entry["worst_cell"]) for entry in entries if entry.get("worst_cell")]
    return Groups(
        slices=tuple(_slice(results, name, sizes[name], partial(found, name)) for name in large),
        worst=tuple(number(entry.get("worst_group")) for entry in entries),
        worst_cells=tuple(
            Cell(arm, names[cell["label"]], cell["group"], cell["images"], number(cell["accuracy"]))
            for arm, cell in worst
        ),
        least_images=least,
        num_cells=len(facts["cells"]),
        small_groups=tuple((name, size) for name, size in sizes.items() if size < least),
        small_cells=tuple(
            (names[cell["label"]], cell["group"], cell["images"]) for cell in facts["cells"] if cell["images"] < least
        ),
    )


def _slice(
    results: Mapping[str, Any], name: str, images: int | None, find: Callable[[Mapping[str, Any]], Any], note: str = ""
) -> Slice:
    """`find` picks the slice's numbers out of an entry of `arms` or `comparisons`."""
    accuracies = (_interval(find(entry) or {}, "accuracy") for entry in results.get("arms", ()))
    differences = (_interval(find(entry) or {}, "difference") for entry in results.get("comparisons", ()))
    return Slice(name, images, tuple(accuracies), tuple(differences), note)


def confused(arm: Arm, names: Sequence[str]) -> tuple[Confused, ...]:
    """An arm's most frequent mistakes, by their share of the true class."""
    found = [
        Confused(names[true], names[predicted], share)
        for true, row in enumerate(shares(arm.confusion))
        for predicted, share in enumerate(row)
        if share > 0 and true != predicted
    ]
    return tuple(sorted(found, key=lambda pair: (-pair.share, pair.true, pair.predicted))[:NUM_CONFUSED])


def shares(confusion: Sequence[Sequence[float]]) -> list[list[float]]:
    """Each row of a confusion matrix divided by its sum; empty rows stay zero.

    >>> shares([[3, 1], [0, 0]])
    [[0.75, 0.25], [0.0, 0.0]]
    """
    totals = map(sum, confusion)
    return [[value / total if total else 0.0 for value in row] for row, total in zip(confusion, totals, strict=True)]


def read_curves(root: Path, arms: Sequence[Arm]) -> tuple[Curve, ...]:
    """Read train/<arm>/seed-<k>/log.jsonl where it exists."""
    curves = []
    for arm in arms:
        for seed in arm.seeds:
            path = root / arm_folder(arm.name) / f"seed-{seed.seed}" / "log.jsonl"
            if path.is_file():
                lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
                curves.append(Curve(arm.name, seed.seed, thin(_column(lines, "loss")), _column(lines, "val_accuracy")))
    return tuple(curves)


def thin(points: Points, most: int = MAX_POINTS) -> Points:
    """Average neighbours until at most `most` points are left; the step is the last one averaged.

    >>> thin(((1, 4.0), (2, 2.0), (3, 1.0)), most=2)
    ((2, 3.0), (3, 1.0))
    """
    size = max(1, -(-len(points) // most))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return tuple((group[-1][0], sum(value for _, value in group) / len(group)) for group in groups)


def mean_curve(curves: Sequence[Points]) -> Points:
    """The mean over seeds at the steps that all of them logged.

    >>> mean_curve([((1, 0.0), (2, 1.0)), ((2, 0.5),)])
    ((2, 0.75),)
    """
    if not curves:
        return ()
    tables = [dict(curve) for curve in curves]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    return tuple((step, sum(table[step] for table in tables) / len(tables)) for step in common)


def _arm(position: int, entry: Mapping[str, Any], seconds: Mapping[tuple[str, int], float | None]) -> Arm:
    seeds = (_seed(seed, seconds.get((entry["arm"], seed["seed"]))) for seed in entry.get("seeds", ()))
    return Arm(
        position=position,
        name=entry["arm"],
        seeds=tuple(seeds),
        selected=_interval(entry["selected"], "accuracy"),
        last=_interval(entry["last"], "accuracy"),
        per_class=tuple(number(value) for value in entry.get("per_class") or ()),
        confusion=tuple(tuple(float(value) for value in row) for row in entry.get("confusion") or ()),
        ece=number(entry.get("ece")),
    )


def _comparison(entry: Mapping[str, Any], names: Sequence[str], per_class: Mapping[str, Sequence[Any]]) -> Comparison:
    before, after = per_class.get(entry["baseline"], ()), per_class.get(entry["arm"], ())
    changes = [
        ClassChange(names[label], _at(before, label), _at(after, label), number(difference))
        for label, difference in enumerate(entry.get("per_class") or ())
    ]
    return Comparison(
        arm=entry["arm"],
        baseline=entry["baseline"],
        selected=_interval(entry["selected"], "difference"),
        last=_interval(entry["last"], "difference"),
        detectable=number(entry.get("detectable")),
        changes=tuple(sorted(changes, key=lambda change: (-_or_lowest(change.difference), change.class_name))),
        verdict=entry.get("verdict") or "",
    )


def _seed(entry: Mapping[str, Any], seconds: float | None) -> SeedResult:
    selected, last = _checkpoint(entry["selected"]), _checkpoint(entry["last"])
    return SeedResult(entry["seed"], entry.get("steps"), selected, last, seconds)


def _checkpoint(entry: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(entry.get("step"), number(entry.get("val_accuracy")), number(entry.get("test_accuracy")))


def _interval(entry: Mapping[str, Any], key: str) -> Interval:
    return Interval(number(entry.get(key)), number(entry.get("low")), number(entry.get("high")))


def _at(values: Sequence[Any], index: int) -> float | None:
    return number(values[index]) if index < len(values) else None


def _or_lowest(value: float | None) -> float:
    return -math.inf if value is None else value


def _column(lines: Sequence[Mapping[str, Any]], key: str) -> Points:
    """(step, value) of every line that has the key; a diverged loss (NaN) is left out of the line drawn."""
    return tuple((int(line["step"]), float(line[key])) for line in lines if number(line.get(key)) is not None)


def feature_space(text: str, names: Sequence[str]) -> FeatureSpace | None:
    """What train wrote of the feature space; None where it wrote nothing, or null."""
    found = json.loads(text or "null")
    if found is None:
        return None
    kinds = [(kind, one["points"], one["total"]) for kind, one in found["kinds"].items()]
    of_class: dict[int, list[tuple[float, float]]] = {}
    for x, y, label in found["kinds"]["real"]["points"]:
        of_class.setdefault(label, []).append((x, y))
    centres = [
        (names[label], fmean(x for x, _ in places), fmean(y for _, y in places))
        for label, places in sorted(of_class.items())
    ]
    return FeatureSpace(
        arm=found["arm"],
        seed=found["seed"],
        explained=tuple(found["explained"]),
        kinds=tuple(ImagesInSpace(kind, tuple((x, y) for x, y, _ in points), total) for kind, points, total in kinds),
        centres=tuple(centres),
    )
