"""Rows of labels keep their mass, whatever is done to them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from variegate.classifier import augment, labels
from variegate.records import SyntheticImage

IMAGES = [
    SyntheticImage("a", "", "s", 0, 1, "", 0.25),
    SyntheticImage("b", "", None, None, 2, "", 1.0),
    SyntheticImage("c", "", "s", 2, 2, "", 0.5),
]


@pytest.mark.parametrize("kappa", [1.0, 0.9])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_diff_mix_labels_sum_to_kappa(kappa: float, smoothing: float) -> None:
    """The released loss gave synthetic rows a mass of 0.81 + 0.1 C / (C - 1)."""
    rows = labels.smooth(labels.soft_targets(IMAGES, 4, gamma=0.5, kappa=kappa), smoothing)
    assert rows.sum(axis=1) == pytest.approx(kappa, abs=1e-6)
    assert (rows >= 0).all()


def test_target_share_is_strength_to_the_gamma() -> None:
    rows = labels.soft_targets(IMAGES, 3, gamma=0.5, kappa=1.0)
    assert rows.tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]


@pytest.mark.parametrize("name", ["mixup", "cutmix", "mixup+cutmix"])
def test_soft_labels_survive_mixup(name: str) -> None:
    """timm's Mixup turns soft rows into a (B * C, C) matrix without a word."""
    targets = torch.tensor(np.tile(labels.soft_targets(IMAGES, 3, gamma=0.5, kappa=0.9), (2, 1)))
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with augment.own_randomness(3, torch.device("cpu")):
        mixed, rows = augment.make_mix(name)(images, targets)
    assert mixed.shape == images.shape
    assert rows.shape == targets.shape
    assert rows.sum(dim=1).tolist() == pytest.approx([0.9] * 6, abs=1e-5)
    assert not torch.equal(mixed, images)
    assert len({len(torch.nonzero(row)) for row in rows}) > 1, "rows differ: they were mixed, not replaced"
