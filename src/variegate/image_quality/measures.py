"""Distances and diversities of sets of images. Pure: features in, float [N, D] unless said otherwise, numbers out; nothing is random.

Frechet distance (arXiv 1706.08500), KID (1801.01401), precision and recall (1904.06991), density and coverage (2002.09797), Vendi
score (2210.02410). Each is that of the features given: the number means nothing without the name of what made them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits  # scikit-learn's own dependency

NEIGHBOURS = 5  # k of precision, recall, density and coverage (Naeem et al.)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """|mean - mean'|^2 + tr(C + C' - 2 (C C')^(1/2)) of two sets of at least 2 rows; biased upwards by about 1 / N.

    With C = R'R the trace of the root is the sum of the singular values of R R''; no root of a singular matrix is taken.
    """
    roots = [_root(_checked(values)) for values in (one, other)]
    gap = one.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(max(gap @ gap + sum((root**2).sum() for root in roots) - 2.0 * shared, 0.0))


def _root(values: np.ndarray) -> np.ndarray:
    """R [min(N, D), D] with R'R the covariance."""
    centred = values - values.mean(axis=0)
    return np.linalg.qr(centred, mode="r") / np.sqrt(len(values) - 1)


def kid(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / D + 1)^3, and its standard error by the two-sample jackknife.

    Sets of at least 3 rows. Without bias a value may fall below 0.
    """
    x, y = _checked(one, 3), _checked(other, 3)
    within = [_kernel(values, values) for values in (x, y)]
    for matrix in within:
        np.fill_diagonal(matrix, 0.0)
    across = _kernel(x, y)
    n, m = across.shape
    rows = [matrix.sum(axis=1) for matrix in within]
    sums, total = [row.sum() for row in rows], across.sum()
    value = _mmd(sums[0], sums[1], total, n, m)
    without_x = _mmd(sums[0] - 2 * rows[0], sums[1], total - across.sum(axis=1), n - 1, m)
    without_y = _mmd(sums[0], sums[1] - 2 * rows[1], total - across.sum(axis=0), n, m - 1)
    spread = sum((len(left) - 1) * left.var() for left in (without_x, without_y))
    return float(value), float(np.sqrt(spread))


def _mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray, n: int, m: int) -> np.ndarray:
    """Of sums of kernel values; where one is a row of sums, a value for each."""
    return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m)


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1.0) ** 3


def neighbourhoods(made: np.ndarray, real: np.ndarray, k: int = NEIGHBOURS) -> dict[str, float]:
    """precision, recall, density, coverage of made images; both sets of more than `k` rows.

    precision: share of made images inside a real image's ball, which reaches to its k-th nearest real image. recall: share of
    real ones inside a made one's. density: in how many real balls a made image lies, over k; may exceed 1. coverage: share of
    real balls that hold a made image.
    """
    made, real = _checked(made, k + 1), _checked(real, k + 1)
    with threadpool_limits(1):
        reach_real, reach_made = _reach(real, k), _reach(made, k)
    apart = np.sqrt(np.maximum((made**2).sum(1)[:, None] + (real**2).sum(1) - 2.0 * made @ real.T, 0.0))
    inside = apart <= reach_real
    return {
        "precision": float(inside.any(axis=1).mean()),
        "recall": float((apart <= reach_made[:, None]).any(axis=0).mean()),
        "density": float(inside.sum(axis=1).mean() / k),
        "coverage": float(inside.any(axis=0).mean()),
    }


def _reach(values: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other one."""
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(values).kneighbors()[0][:, -1]


def vendi(values: np.ndarray) -> float:
    """The number of different images that would be as diverse: exp of the entropy of the eigenvalues of the cosine matrix / N."""
    rows = _unit(_checked(values, 1))
    weights = np.linalg.svd(rows, compute_uv=False) ** 2 / len(rows)
    weights = weights[weights > 1e-12]
    return float(np.exp(-(weights * np.log(weights)).sum()))


class Diversity:
    """How unlike the images of a class are: LPIPS's distance (arXiv 1801.03924, eq. 1), mean over all pairs, in one pass.

    Every layer and channel counts alike (no learned weights), the mean over layers is taken and halved: 1 - cosine of two
    images' features at the same place, in [0, 2]. What the sums over images hold is enough, so no pair is looked at.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[np.ndarray] = []  # of every layer's unit vectors, [C, h, w]
        self._own = 0.0  # squared lengths, a mean over places and layers: 1 an image but where nothing is seen

    def add(self, maps: Sequence[np.ndarray]) -> None:
        """Feature maps of some images, one [N, C, h, w] a layer."""
        units = [layer / np.maximum(np.linalg.norm(layer, axis=1, keepdims=True), 1e-12) for layer in maps]
        sums = [unit.sum(axis=0, dtype=np.float64) for unit in units]
        self._sums = [one + new for one, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self._own += float(np.mean([(unit**2).sum() / unit[0, 0].size for unit in units]))
        self._count += len(maps[0])

    @property
    def value(self) -> float | None:
        """None for fewer than two images."""
        if self._count < 2:
            return None
        together = float(np.mean([(one**2).sum() / one[0].size for one in self._sums]))
        return self._own / self._count - (together - self._own) / (self._count * (self._count - 1))


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _checked(values: np.ndarray, least: int = 2) -> np.ndarray:
    if values.ndim != 2 or len(values) < least:
        raise ValueError(f"features should be [N, D] with at least {least} rows, got {list(values.shape)}")
    return np.asarray(values, np.float64)
