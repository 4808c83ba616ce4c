"""A judge of classes: a logistic regression on frozen features or a classifier's own logits, calibrated by one temperature as
in DIAGen (arXiv 2408.14584).

Pure: feature vectors in, numbers out. Curating asks it about drawn images, adapting about previews.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits  # scikit-learn's own dependency

if TYPE_CHECKING:  # scikit-learn takes a second to load, and most commands ask no judge
    from sklearn.pipeline import Pipeline

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse penalties tried
MAX_FOLDS = 5
ECE_BINS = 15  # DIAGen's
WEAK_JUDGE = 1.5  # a judge has to be right clearly more often than this many times chance
_Z = 1.96  # 95 %
_MAX_ITERATIONS = 2000


@dataclass(frozen=True, slots=True)
class Judge:
    """A calibrated classifier of feature vectors and how far to trust it."""

    score: Callable[[np.ndarray], np.ndarray]  # features [N, D] to logits [N, K]
    temperature: float
    classes: np.ndarray  # int64 [K], labels it knows, sorted
    held_out_accuracy: (
        float  # on images it had not learned from; penalty and temperature were chosen on them, which flatters a little
    )
    num_tested: int  # independent images that held_out_accuracy was measured on: flips and groups count once
    chance: float  # what always naming the commonest class would score
    ece_before: float | None = None  # calibration error on those images, without the temperature and with it
    ece_after: float | None = None

    @property
    def held_out_low(self) -> float:
        """Lower end of the 95 % interval of held_out_accuracy."""
        return binomial_low(self.held_out_accuracy, self.num_tested)

    @property
    def needed(self) -> float:
        """What held_out_low has to reach: 1.5 times chance, but never more than half of the way from chance to 1."""
        return min(WEAK_JUDGE * self.chance, (1.0 + self.chance) / 2.0)

    @property
    def is_weak(self) -> bool:
        """Whether it is not clearly better than guessing, and so may decide nothing."""
        return self.held_out_low < self.needed


def binomial_low(share: float, count: int) -> float:
    """Lower end of Wilson's 95 % interval of a share measured on `count` independent trials.

    >>> round(binomial_low(0.5, 10), 3), round(binomial_low(0.5, 1000), 3), round(binomial_low(0.0, 10), 3)
    (0.237, 0.469, 0.0)
    """
    spread = _Z * math.sqrt(share * (1.0 - share) / count + _Z**2 / (4 * count**2))
    return max((share + _Z**2 / (2 * count) - spread) / (1.0 + _Z**2 / count), 0.0)


def train_judge(features: np.ndarray, labels: np.ndarray, groups: Sequence[str], *, seed: int) -> Judge | None:
    """Learn from real training images; None where a class has too few to test the judge on.

    `features` float [N, D]; rows of one `groups` value (an image and its flip, images of one animal) are never
    split between learning and testing. Penalty and temperature are chosen by cross-validation inside these rows.
    """
    importlib.import_module("sklearn.linear_model")  # before the limit, which holds for what is loaded
    folds = _folds(labels, np.asarray(groups), seed)
    if not folds:
        return None
    with threadpool_limits(1):  # matrices this small only lose by threads, and their number would change the last bits
        return _chosen(features, labels, folds, num_tested=len(set(groups)))


def _chosen(
    features: np.ndarray, labels: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]], *, num_tested: int
) -> Judge:
    classes = np.unique(labels)
    best_loss, best_c, best_logits = np.inf, C_GRID[0], np.empty((0, len(classes)))
    for c in C_GRID:
        logits = _held_out_logits(features, labels, folds, c)
        loss = _log_loss(logits, labels, classes, 1.0)
        if loss < best_loss:
            best_loss, best_c, best_logits = loss, c, logits
    return Judge(
        score=partial(_logits, _fresh(best_c).fit(features, labels)),
        **_measured(best_logits, labels, classes),
        num_tested=num_tested,
    )


def judge_of_logits(logits: np.ndarray, labels: np.ndarray, groups: Sequence[str]) -> Judge:
    """A judge whose features are a classifier's logits [N, C] already, measured on held-out images with their `labels` and `groups`."""
    classes = np.arange(logits.shape[1])
    return Judge(score=np.asarray, **_measured(logits, labels, classes), num_tested=len(set(groups)))


def _measured(logits: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> dict[str, Any]:
    """Temperature, accuracy and calibration from logits of images the model had not learned from."""
    temperature = _temperature(logits, labels, classes)
    return {
        "classes": classes,
        "temperature": temperature,
        "ece_before": _calibration_error(logits, labels, classes),
        "ece_after": _calibration_error(logits / temperature, labels, classes),
        "held_out_accuracy": float(np.mean(classes[logits.argmax(axis=1)] == labels)),
        "chance": float(np.unique(labels, return_counts=True)[1].max() / len(labels)),
    }


def class_agreement(judge: Judge, features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The judge's probability that each image shows its target class; float32 [N] in [0, 1]."""
    if not len(features):
        return np.empty(0, np.float32)
    probabilities = _softmax(judge.score(features) / judge.temperature)
    places = {label: place for place, label in enumerate(judge.classes.tolist())}
    found = [
        row[places[label]] if label in places else 0.0
        for row, label in zip(probabilities, targets.tolist(), strict=True)
    ]
    return np.array(found, np.float32)


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Learning and testing rows; as many folds as the rarest class has groups, 2 to MAX_FOLDS."""
    rarest = min((len(np.unique(groups[labels == label])) for label in np.unique(labels)), default=0)
    if rarest < 2 or len(np.unique(labels)) < 2:
        return []
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(min(MAX_FOLDS, rarest), shuffle=True, random_state=seed % 2**32)
    folds = list(splitter.split(np.zeros(len(labels)), labels, groups))
    known = set(np.unique(labels).tolist())
    return [(learn, test) for learn, test in folds if len(test) and set(labels[learn].tolist()) == known]


def _held_out_logits(features: np.ndarray, labels: np.ndarray, folds: list, c: float) -> np.ndarray:
    """Every row judged by a model that did not see its group; rows that are in no fold get no opinion (zeros)."""
    logits = np.zeros((len(labels), len(np.unique(labels))))
    for learn, test in folds:
        logits[test] = _logits(_fresh(c).fit(features[learn], labels[learn]), features[test])
    return logits


def _fresh(c: float) -> Pipeline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=_MAX_ITERATIONS))


def _logits(model: Pipeline, features: np.ndarray) -> np.ndarray:
    """float64 [N, K]; scikit-learn gives one column for two classes."""
    found = model.decision_function(features)
    return np.stack([-found / 2, found / 2], axis=1) if found.ndim == 1 else found


def _temperature(logits: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda power: _log_loss(logits, labels, classes, float(np.exp(power))), bounds=(-3.0, 3.0), method="bounded"
    )
    return float(np.exp(found.x))


def _calibration_error(logits: np.ndarray, labels: np.ndarray, classes: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over equal-width bins (arXiv 1706.04599); in [0, 1]."""
    confidence, is_right = _softmax(logits).max(axis=1), classes[logits.argmax(axis=1)] == labels
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    return float(np.abs(np.bincount(bins, weights=confidence - is_right)).sum() / len(labels))


def _log_loss(logits: np.ndarray, labels: np.ndarray, classes: np.ndarray, temperature: float) -> float:
    scaled = logits / temperature
    top = scaled.max(axis=1)
    log_sum = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float(np.mean(log_sum - scaled[np.arange(len(labels)), np.searchsorted(classes, labels)]))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
