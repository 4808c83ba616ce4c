"""Losses for long-tailed classes: LDAM, balanced softmax, class-balanced weights, all of them for soft labels. Pure.

Each is defined in its paper for one true class, as a loss l_c per class c. A label row t (a soft label, MixUp,
smoothing) says that t_c of an image is an example of class c, so its loss is sum_c t_c w_c l_c with class weights w:
linear in the label, as MixUp and CMO have it, and the paper's own where the row is one-hot. A row of mass kappa counts
kappa. docs/methods.md says which counts go where, and why.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from variegate.classifier.mixing import Slots


@dataclass(frozen=True, slots=True)
class LossRule:
    """Which loss; see recipe.TrainSection."""

    name: str = "ce"  # ce, ldam, balanced-softmax
    max_margin: float = 0.5  # ldam, as a cosine
    scale: float = 30.0  # ldam, of the cosines
    class_weights: str = "none"  # none, class-balanced
    beta: float = 0.9999  # class-balanced
    reweight_from: float = 0.0  # share of the steps after which class weights apply

    def is_reweighting(self, step: int, num_steps: int) -> bool:
        """Whether class weights apply in a step from 0.

        >>> rule = LossRule(class_weights="class-balanced", reweight_from=0.8)
        >>> [rule.is_reweighting(step, 10) for step in (7, 8)]
        [False, True]
        """
        return self.class_weights != "none" and step >= round(self.reweight_from * num_steps)


@dataclass(frozen=True, slots=True)
class ClassTable:
    """What the losses know of the classes; float32 [C] each."""

    log_prior: torch.Tensor  # of the labels that training shows
    margins: torch.Tensor  # in units of logits
    weights: torch.Tensor


def class_table(rule: LossRule, counts: np.ndarray, shown: np.ndarray) -> ClassTable:
    """`counts` int [C] are real training images, the independent examples; `shown` float [C] the mass of all labels."""
    margins = rule.scale * ldam_margins(counts, rule.max_margin)
    columns = (log_prior(shown), margins, class_balanced_weights(counts, rule.beta))
    return ClassTable(*(torch.tensor(column, dtype=torch.float32) for column in columns))


def log_prior(shown: np.ndarray) -> np.ndarray:
    """log of each class's share of the labels shown; float64 [C]. A class that is never shown counts as shown once."""
    mass = np.maximum(np.asarray(shown, np.float64), 1.0)
    return np.log(mass / mass.sum())


def ldam_margins(counts: np.ndarray, max_margin: float) -> np.ndarray:
    """Margins proportional to n^(-1/4), the rarest class's `max_margin` (LDAM, arXiv 1906.07413); float64 [C].

    >>> ldam_margins(np.array([16, 1]), 0.5).tolist()
    [0.25, 0.5]
    """
    reach = np.maximum(np.asarray(counts, np.float64), 1.0) ** -0.25
    return max_margin * reach / reach.max()


def class_balanced_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n), of mean 1: one over the effective number of images (arXiv 1901.05555); float64 [C].

    >>> class_balanced_weights(np.array([3, 1]), 0.0).tolist()
    [1.0, 1.0]
    >>> class_balanced_weights(np.array([3, 1]), 0.99999).round(2).tolist()
    [0.5, 1.5]
    """
    weights = 1.0 / (1.0 - beta ** np.maximum(np.asarray(counts, np.float64), 1.0))
    return weights / weights.mean()


def labels_shown(slots: Slots, real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Mass of every class in all labels of a run of batches; float64 [C].

    `real` and `synthetic` float [N, C] are the label rows that `slots` points into.
    """
    used = [
        np.bincount(slots.index[slots.is_synthetic == kind], minlength=len(rows)) @ rows.astype(np.float64)
        for kind, rows in ((False, real), (True, synthetic))
        if len(rows)
    ]
    return np.sum(used, axis=0)


def batch_loss(
    rule: LossRule, logits: torch.Tensor, targets: torch.Tensor, table: ClassTable, *, is_reweighting: bool
) -> torch.Tensor:
    """Mean over a batch of sum_c t_c w_c l_c; `logits` float [B, C], `targets` float [B, C], scalar out."""
    if is_reweighting:
        targets = targets * table.weights
    if rule.name == "ldam":
        return (targets * ldam_terms(logits, table.margins)).sum(dim=1).mean()
    if rule.name == "balanced-softmax":
        logits = logits + table.log_prior  # balanced softmax, arXiv 2007.10740
    return F.cross_entropy(logits, targets)


def ldam_terms(logits: torch.Tensor, margins: torch.Tensor) -> torch.Tensor:
    """LDAM's loss of every image for every class, were it the true one; float [B, C] in and out, `margins` [C].

    l_c = -log(exp(z_c - m_c) / (exp(z_c - m_c) + sum_{j != c} exp z_j)): the true class's logit is lowered by m_c.
    """
    return F.softplus(_log_sum_of_others(logits) - (logits - margins))


def _log_sum_of_others(logits: torch.Tensor) -> torch.Tensor:
    """log sum_{j != c} exp z_j; exact also where class c has nearly all of the mass: there a margin is met."""
    top = F.one_hot(logits.argmax(dim=1), logits.shape[1]).bool()
    whole = torch.logsumexp(logits, dim=1, keepdim=True)
    without_top = torch.logsumexp(logits.masked_fill(top, -torch.inf), dim=1, keepdim=True)
    share = (logits - whole).exp().masked_fill(top, 0.0)  # at most 1/2
    return torch.where(top, without_top, whole + torch.log1p(-share))
