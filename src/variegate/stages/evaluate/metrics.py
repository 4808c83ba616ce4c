"""What a classifier's probabilities are worth: accuracy, by class and group, confusion, calibration. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

ECE_BINS = 15
MIN_GROUP_IMAGES = 10  # a worst group of two images would be worst by chance


def is_correct(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the most probable class (the first of equals) is the label; bool [N]."""
    return probabilities.argmax(axis=1) == labels


def confusion_matrix(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many images of class i were called j; int64 [C, C]."""
    num_classes = probabilities.shape[1]
    cells = labels * num_classes + probabilities.argmax(axis=1)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class_accuracy(confusion: np.ndarray) -> list[float | None]:
    """Share of each class's images that were called right; None for a class without any."""
    totals = confusion.sum(axis=1)
    return [float(confusion[k, k] / total) if total else None for k, total in enumerate(totals)]


def macro_accuracy(confusion: np.ndarray) -> float:
    """Mean of the classes' accuracies, every class counting the same."""
    return float(np.mean([value for value in per_class_accuracy(confusion) if value is not None]))


def shot_classes(counts: Sequence[int], bounds: tuple[int, int]) -> dict[str, list[int]] | None:
    """Labels of many-, medium- and few-shot classes (arXiv 1904.05160); None unless two of the three have classes.

    `counts` are real training images; medium classes have `bounds[0]` to `bounds[1]` of them, both included.

    >>> shot_classes([150, 100, 20, 19], (20, 100))
    {'many': [0], 'medium': [1, 2], 'few': [3]}
    """
    low, high = bounds
    names = ["many" if count > high else "few" if count < low else "medium" for count in counts]
    found = {kind: [label for label, name in enumerate(names) if name == kind] for kind in ("many", "medium", "few")}
    found = {kind: members for kind, members in found.items() if members}
    return found if len(found) > 1 else None


def class_shares(labels: np.ndarray, members: Sequence[int]) -> np.ndarray:
    """Factors float64 [N] that make the mean over images of `members` the mean of those classes' accuracies; else 0.

    >>> class_shares(np.array([0, 0, 0, 1, 2]), [0, 1]).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0, 0.0]
    """
    sizes = np.bincount(labels, minlength=max(members, default=0) + 1)
    tested = [label for label in members if sizes[label]]
    chosen = np.isin(labels, tested)
    return np.where(chosen, chosen.sum() / (max(len(tested), 1) * sizes[labels]), 0.0)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., arXiv 1706.04599); in [0, 1].

    >>> expected_calibration_error(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    0.5
    """
    confidence, correct = probabilities.max(axis=1), is_correct(probabilities, labels)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def group_sizes(groups: Sequence[str | None]) -> dict[str, int]:
    """Images of each named group, sorted by name."""
    found = Counter(group for group in groups if group is not None)
    return {name: found[name] for name in sorted(found)}


def cell_sizes(labels: np.ndarray, groups: Sequence[str | None]) -> dict[tuple[int, str], int]:
    """Images of each (class, group) that has any, sorted: the groups of Waterbirds (arXiv 1911.08731)."""
    pairs = zip(labels.tolist(), groups, strict=True)
    found = Counter((label, group) for label, group in pairs if group is not None)
    return {cell: found[cell] for cell in sorted(found)}


def group_accuracy(correct: np.ndarray, groups: Sequence[str | None]) -> dict[str, float] | None:
    """Accuracy of each named group of at least 10 images, sorted; None unless there are two such groups.

    `correct` float or bool [N], or [seeds, N].
    """
    named = np.array([group if group is not None else "" for group in groups])
    large = [name for name, size in group_sizes(groups).items() if size >= MIN_GROUP_IMAGES]
    found = {name: float(np.mean(correct[..., named == name])) for name in large}
    return found if len(found) > 1 else None


def cell_accuracy(correct: np.ndarray, labels: np.ndarray, groups: Sequence[str | None]) -> list[float]:
    """Accuracy of every (class, group), in the order of `cell_sizes`; `correct` float [seeds, N]."""
    named = np.array([group if group is not None else "" for group in groups])
    return [float(np.mean(correct[:, (labels == k) & (named == name)])) for k, name in cell_sizes(labels, groups)]
