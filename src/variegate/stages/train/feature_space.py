"""Where images lie in the feature space of a classifier: the two directions in which real training images differ most.

The picture of gdl_term's analysis: principal components are those of the real training images alone, and the others are
projected on them, so that synthetic images cannot turn the axes their way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits  # scikit-learn's own dependency

if TYPE_CHECKING:  # takes a second to load, and most commands show no picture
    from sklearn.decomposition import PCA

MAX_IMAGES = 400  # of each kind, drawn at random


@dataclass(frozen=True, slots=True)
class Kind:
    """Images of one kind: real, synthetic or validation."""

    features: np.ndarray  # float32 [N, D]
    labels: np.ndarray  # int [N]; of a synthetic image the target
    total: int  # of the run; N of them were drawn for the picture


def drawn(count: int, seed: int) -> np.ndarray:
    """Which images of a kind the picture shows; int64, in order, at most MAX_IMAGES.

    >>> drawn(3, 0).tolist(), len(drawn(1000, 0))
    ([0, 1, 2], 400)
    """
    return np.sort(np.random.default_rng(seed).permutation(count)[:MAX_IMAGES])


def picture(kinds: Mapping[str, Kind]) -> dict[str, Any] | None:
    """Coordinates of all kinds on the components of `real`; None where real images span less than a plane.

    `explained` are the shares of the real images' variance; `points` are [x, y, label].
    """
    real = kinds["real"].features
    if min(real.shape) < 2 or np.linalg.matrix_rank(real - real.mean(axis=0)) < 2:
        return None
    from sklearn.decomposition import PCA  # before the limit, which holds for what is loaded

    with threadpool_limits(1):  # the number of threads would change the last bits
        plane = PCA(2, svd_solver="full").fit(real.astype(np.float64))
        shown = {name: _points(plane, kind) for name, kind in kinds.items() if len(kind.features)}
    return {
        "explained": [round(float(share), 4) for share in plane.explained_variance_ratio_],
        "kinds": {name: {"total": kinds[name].total, "points": points} for name, points in shown.items()},
    }


def _points(plane: PCA, kind: Kind) -> list[list[float]]:
    places = plane.transform(kind.features.astype(np.float64)).round(4).tolist()
    return [[*place, int(label)] for place, label in zip(places, kind.labels, strict=True)]
