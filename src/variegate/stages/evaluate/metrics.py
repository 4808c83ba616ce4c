"""What a classifier's probabilities are worth: accuracy, by class and group, confusion, calibration. Pure."""

from __future__ import annotations

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


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = ECE_BINS) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (Guo et al., arXiv 1706.04599); in [0, 1].

    >>> expected_calibration_error(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]))
    0.5
    """
    confidence, correct = probabilities.max(axis=1), is_correct(probabilities, labels)
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - correct, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(labels))


def group_accuracy(correct: np.ndarray, groups: Sequence[str | None]) -> dict[str, float] | None:
    """Accuracy of each named group of at least 10 images, sorted; None unless there are two such groups.

    `correct` float or bool [N], or [seeds, N].
    """
    named = np.array([group if group is not None else "" for group in groups])
    found = {}
    for name in sorted(set(named.tolist()) - {""}):
        members = named == name
        if members.sum() >= MIN_GROUP_IMAGES:
            found[name] = float(np.mean(correct[..., members]))
    return found if len(found) > 1 else None
