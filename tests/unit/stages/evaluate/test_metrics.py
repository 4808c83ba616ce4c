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


def test_shot_groups_by_the_fields_thresholds() -> None:
    assert metrics.shot_classes([500, 101, 100, 20, 19, 1], (20, 100)) == {
        "many": [0, 1],
        "medium": [2, 3],
        "few": [4, 5],
    }
    assert metrics.shot_classes([5] * 10, (20, 100)) is None, "few-shot data has no tail"
    assert metrics.shot_classes([30, 3], (20, 100)) == {"medium": [0], "few": [1]}


def test_class_shares_turn_a_mean_over_images_into_one_over_classes() -> None:
    labels = np.array([0] * 30 + [1] * 2 + [2] * 5)
    correct = np.r_[np.ones(30), np.zeros(2), np.ones(5)]
    shares = metrics.class_shares(labels, [0, 1, 7])
    assert (correct * shares)[shares > 0].mean() == pytest.approx(0.5)
    assert not shares[labels == 2].any()


def test_cells_are_classes_within_groups() -> None:
    labels, groups = np.array([0, 0, 1, 1, 1]), ["wood", "water", "wood", "wood", None]
    assert metrics.cell_sizes(labels, groups) == {(0, "water"): 1, (0, "wood"): 1, (1, "wood"): 2}
    assert metrics.cell_accuracy(np.array([[1.0, 0.0, 1.0, 0.0, 1.0]]), labels, groups) == [0.0, 1.0, 0.5]
    assert metrics.group_sizes(groups) == {"water": 1, "wood": 3}
