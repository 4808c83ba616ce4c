"""Labels as probability rows: one-hot for real images, Diff-Mix's soft labels for synthetic ones, smoothing.

Pure. A row sums to kappa (1 unless the recipe says otherwise): smoothing moves mass between classes and adds none,
unlike Diff-Mix's released loss, whose rows summed to 0.81 + 0.1 C / (C - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from variegate.records import SyntheticImage, soft_label


def one_hot(labels: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """float32 [N, num_classes]."""
    return np.eye(num_classes, dtype=np.float32)[np.asarray(labels, np.int64)]


def soft_targets(images: Sequence[SyntheticImage], num_classes: int, *, gamma: float, kappa: float) -> np.ndarray:
    """The label rows of synthetic images; float32 [N, num_classes], each summing to `kappa`."""
    rows = np.zeros((len(images), num_classes), np.float32)
    for row, image in zip(rows, images, strict=True):
        rule = {"gamma": gamma, "kappa": kappa, "original_share": image.original_share}
        for label, weight in soft_label(image.source_label, image.target, image.strength, **rule):
            row[label] += weight
    return rows


def smooth(targets: np.ndarray, amount: float) -> np.ndarray:
    """Spread `amount` of every row's mass evenly over all classes; the mass stays.

    >>> [round(float(share), 2) for share in smooth(one_hot([1], 4), 0.2)[0]]
    [0.05, 0.85, 0.05, 0.05]
    """
    mass = targets.sum(axis=1, keepdims=True)
    return ((1.0 - amount) * targets + amount * mass / targets.shape[1]).astype(np.float32)
