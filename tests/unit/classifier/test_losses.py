"""Long-tail losses against their papers' formulas, with hard and with soft labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from variegate.classifier import labels, losses, mixing
from variegate.classifier.losses import LossRule

COUNTS = np.array([100, 20, 3])
NAMES = ["ce", "ldam", "balanced-softmax"]


def table(rule: LossRule, counts: np.ndarray = COUNTS, shown: np.ndarray | None = None) -> losses.ClassTable:
    return losses.class_table(rule, counts, np.asarray(counts if shown is None else shown, np.float64))


def loss(rule: LossRule, logits: torch.Tensor, targets: torch.Tensor, *, is_reweighting: bool = False) -> float:
    return float(losses.batch_loss(rule, logits, targets, table(rule), is_reweighting=is_reweighting))


def some_logits(count: int = 5) -> torch.Tensor:
    return 4 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


def one_hot(*found: int) -> torch.Tensor:
    return torch.tensor(labels.one_hot(found, 3))


def by_the_paper(name: str, logits: torch.Tensor, label: int) -> float:
    """Each paper's loss of one image with one true class, written out as it is printed."""
    z, n = logits.double().tolist(), COUNTS.tolist()
    if name == "ldam":
        margins = [30.0 * 0.5 * (min(n) / count) ** 0.25 for count in n]
        z[label] -= margins[label]
        odds = [math.exp(value) for value in z]
    elif name == "balanced-softmax":
        odds = [count * math.exp(value) for count, value in zip(n, z, strict=True)]
    else:
        odds = [math.exp(value) for value in z]
    return -math.log(odds[label] / sum(odds))


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_one_true_class_gives_the_papers_loss(name: str, label: int) -> None:
    for logits in some_logits():
        expected = by_the_paper(name, logits, label)
        assert loss(LossRule(name), logits[None], one_hot(label)) == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_soft_label_is_the_mean_over_its_classes(name: str) -> None:
    """Diff-Mix's LDAM fails on label rows (it scatters a class index): here a row is a share of each class."""
    logits = some_logits(1)
    row = torch.tensor([[0.2, 0.3, 0.4]])  # kappa 0.9
    parts = [loss(LossRule(name), logits, one_hot(label)) for label in range(3)]
    assert loss(LossRule(name), logits, row) == pytest.approx(
        0.2 * parts[0] + 0.3 * parts[1] + 0.4 * parts[2], rel=1e-5
    )


def test_cross_entropy_is_torchs() -> None:
    targets = torch.rand(5, 3, generator=torch.Generator().manual_seed(1))
    assert loss(LossRule(), some_logits(), targets) == float(F.cross_entropy(some_logits(), targets))


@pytest.mark.parametrize("gap", [0.0, 10.0, 15.0, 25.0, 59.0])
def test_ldam_stays_exact_where_a_margin_is_met(gap: float) -> None:
    """At the margin the other classes have 10^-7 of the mass: 1 - p would be rounding error."""
    logits = torch.tensor([[gap, 0.0, -1.0]], requires_grad=True)
    margins = torch.tensor([15.0, 15.0, 15.0])
    found = losses.ldam_terms(logits, margins)[0, 0]
    others = math.log(1.0 + math.exp(-1.0))
    assert float(found.detach()) == pytest.approx(math.log1p(math.exp(others - gap + 15.0)), rel=1e-4)
    found.backward()
    pull = 1.0 / (1.0 + math.exp(gap - 15.0 - others))
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([-pull, pull * 0.7311, pull * 0.2689], rel=1e-3)


def test_margins_and_weights_are_the_papers() -> None:
    assert losses.ldam_margins(np.array([81, 16, 1]), 0.5).tolist() == pytest.approx([0.5 / 3, 0.25, 0.5])
    weights = losses.class_balanced_weights(COUNTS, 0.99)
    expected = [(1 - 0.99) / (1 - 0.99**n) for n in COUNTS.tolist()]
    assert weights.tolist() == pytest.approx([3 * value / sum(expected) for value in expected])
    assert losses.class_balanced_weights(COUNTS, 0.0).tolist() == [1.0, 1.0, 1.0]
    almost = losses.class_balanced_weights(COUNTS, 1 - 1e-12)
    assert (almost * COUNTS).tolist() == pytest.approx([almost[0] * 100] * 3, rel=1e-3)


def test_weights_scale_each_class_of_a_soft_label() -> None:
    rule, logits, row = LossRule(class_weights="class-balanced"), some_logits(1), torch.tensor([[0.5, 0.0, 0.5]])
    w = losses.class_balanced_weights(COUNTS, rule.beta)
    parts = [loss(rule, logits, one_hot(label)) for label in range(3)]
    assert loss(rule, logits, row, is_reweighting=True) == pytest.approx(
        0.5 * w[0] * parts[0] + 0.5 * w[2] * parts[2], rel=1e-5
    )


def test_deferred_weights_begin_at_their_step() -> None:
    rule = LossRule(class_weights="class-balanced", reweight_from=0.8)
    assert [step for step in range(300) if rule.is_reweighting(step, 300)] == list(range(240, 300))
    assert all(LossRule(class_weights="class-balanced").is_reweighting(step, 300) for step in range(300))
    assert not any(LossRule().is_reweighting(step, 300) for step in range(300))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_balanced_softmax_learns_what_a_balanced_training_set_would_teach(smoothing: float) -> None:
    """Images that say nothing: with the prior taken out, no class is favoured. By counts alone smoothing favours the rare."""
    rows = torch.tensor(labels.smooth(labels.one_hot(np.repeat([0, 1, 2], [1000, 10, 1]), 3), smoothing))
    shown = losses.class_table(LossRule(), np.array([1000, 10, 1]), rows.double().sum(0).numpy())
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        whole = logits.expand(len(rows), 3)
        value = losses.batch_loss(LossRule("balanced-softmax"), whole, rows, shown, is_reweighting=False)
        value.backward()
        return value

    optimizer.step(closure)
    assert logits.detach().softmax(dim=1)[0].tolist() == pytest.approx([1 / 3] * 3, abs=0.01)


def test_the_prior_is_that_of_all_labels_shown() -> None:
    slots = mixing.Slots(np.array([[False, False, True]]), np.array([[0, 0, 1]]))
    synthetic = np.array([[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]], np.float32)
    shown = losses.labels_shown(slots, labels.one_hot([0, 1], 3), synthetic)
    assert shown.tolist() == [2.0, 0.25, 0.75]
    assert losses.labels_shown(slots, labels.one_hot([0], 3), synthetic).tolist() == [2.0, 0.25, 0.75]


def test_a_class_that_is_never_shown_leaves_the_loss_finite() -> None:
    found = losses.class_table(LossRule(), np.array([5, 5, 0]), np.array([50.0, 50.0, 0.0]))
    value = losses.batch_loss(
        LossRule("balanced-softmax"), some_logits(), one_hot(0, 1, 0, 1, 0), found, is_reweighting=True
    )
    assert math.isfinite(float(value))
