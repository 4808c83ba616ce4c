"""Metrics against hand-counted values."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.stages.evaluate import metrics

LABELS = np.array([0, 0, 0, 1, 1])
CALLED = np.array([0, 0, 1, 1, 0])
SURE = np.eye(3)[CALLED]


def test_confusion_rows_are_true_classes() -> None:
    confusion = metrics.confusion_matrix(SURE, LABELS)
    assert confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert metrics.per_class_accuracy(confusion) == [pytest.approx(2 / 3), 0.5, None]
    assert metrics.macro_accuracy(confusion) == pytest.approx(7 / 12)
    assert metrics.is_correct(SURE, LABELS).mean() == 0.6


def test_calibration_error_is_zero_for_honest_and_large_for_boastful_guesses() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.5, 1.0, 20_000)
    labels = (rng.random(20_000) > truth).astype(int)
    honest = np.stack([truth, 1 - truth], axis=1)
    assert metrics.expected_calibration_error(honest, labels) < 0.02
    assert metrics.expected_calibration_error(np.eye(2)[np.zeros(20_000, int)], labels) == pytest.approx(0.25, abs=0.02)


def test_groups_need_ten_images_and_company() -> None:
    correct = np.tile([1.0, 0.0], 15)
    names = ["wood"] * 12 + ["water"] * 12 + ["rare"] * 4 + [None] * 2
    assert metrics.group_accuracy(correct, names) == {"water": 0.5, "wood": 0.5}
    assert metrics.group_accuracy(correct, ["wood"] * 30) is None
    assert metrics.group_accuracy(correct, [None] * 30) is None
    assert metrics.group_accuracy(np.stack([correct, 1 - correct]), names) == {"water": 0.5, "wood": 0.5}
