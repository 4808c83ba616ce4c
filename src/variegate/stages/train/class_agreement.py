"""What classifiers of the real images alone take drawn images for: an adapted model may draw one class as another. Pure.

One such class costs more than its own accuracy, as the class that it looks like is unlearned with it (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from variegate.classifier.labels import soft_targets
from variegate.judge import binomial_low
from variegate.records import SyntheticImage

MAX_IMAGES = 40  # of a class, drawn at random
DRAWN_AS_OTHERS = "classifiers of the real images alone see classes drawn as others: "
SURELY = 0.99  # share of the label that is the target's; the others show two classes


def asked_about(
    images: Sequence[SyntheticImage], num_classes: int, gamma: float, rng: np.random.Generator
) -> np.ndarray:
    """Which of the `images` classifiers are asked about: some of each target, none that has no weight or shows two classes.

    int64, in order; `gamma` is the soft label's.
    """
    if not images:
        return np.empty(0, np.int64)
    rows = soft_targets(images, num_classes, gamma=gamma, kappa=1.0)
    targets = np.array([image.target for image in images], np.int64)
    usable = (rows[np.arange(len(rows)), targets] > SURELY) & np.array([image.weight > 0 for image in images])
    return chosen_images(targets, usable, rng)


def chosen_images(targets: np.ndarray, usable: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """At most MAX_IMAGES `usable` bool [M] images of each of the `targets` int [M]; int64, in order.

    >>> chosen_images(np.array([0] * 90 + [1]), np.ones(91, bool), np.random.default_rng(0))[[0, -1]].tolist()
    [2, 90]
    """
    order = rng.permutation(np.flatnonzero(usable))
    own = [order[targets[order] == label][:MAX_IMAGES] for label in np.unique(targets[order])]
    return np.sort(np.concatenate([order[:0], *own]))


def class_agreement(
    drawn: np.ndarray, targets: np.ndarray, held_out: np.ndarray, labels: np.ndarray
) -> list[dict[str, Any]]:
    """For each class how many of its `drawn` images have its name, and which other name most of the others have.

    `drawn` [M, C] and `held_out` [N, C] are probabilities of images of `targets` [M] and, real, of `labels` [N].
    `agreement` and `taken` are shares of the drawn, `real_agreement` and `real_taken` of the real images; None without any.
    """
    entries = []
    for label in range(drawn.shape[1]):
        named, real = drawn[targets == label].argmax(axis=1), held_out[labels == label].argmax(axis=1)
        others = np.bincount(named[named != label], minlength=drawn.shape[1])
        other = int(others.argmax()) if others.any() else None
        entries.append(
            {
                "images": len(named),
                "agreement": _share(named, label),
                "taken_for": other,
                "taken": _share(named, other),
                "held_out": len(real),
                "real_agreement": _share(real, label),
                "real_taken": _share(real, other),
            }
        )
    return entries


def _share(named: np.ndarray, label: int | None) -> float | None:
    return None if label is None or not len(named) else float(np.mean(named == label))


def is_drawn_as_another(entry: Mapping[str, Any]) -> bool:
    """Whether most drawn images of a class have one other name, and surely more of them than real ones."""
    if entry["taken"] is None or entry["real_taken"] is None or entry["taken"] <= 0.5:
        return False
    most_real = 1.0 - binomial_low(1.0 - entry["real_taken"], entry["held_out"])
    return binomial_low(entry["taken"], entry["images"]) > most_real


def warning(entries: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Which classes are drawn as others; empty where none is, or where there are no `entries`."""
    told = [
        f"{name} as {names[entry['taken_for']]} ({100 * entry['taken']:.0f} % of {entry['images']}; as itself "
        f"{100 * entry['agreement']:.0f} %, where real images are at {100 * entry['real_agreement']:.0f} %)"
        for name, entry in zip(names if entries else (), entries, strict=True)
        if is_drawn_as_another(entry)
    ]
    return DRAWN_AS_OTHERS + ", ".join(told) if told else ""
