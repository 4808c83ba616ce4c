"""What the U-Net should predict and how much each noise level counts. Pure tensor functions.

x_t = alpha x_0 + sigma eps; v = alpha eps - sigma x_0 (arXiv 2202.00512).
"""

from __future__ import annotations

import torch

HUBER_WIDTH = 0.3  # of latents of unit deviation
FOCUS_CAP = 10.0  # times the mean difference of an item


def noised(clean: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """x_t [N, C, h, w] for alpha^2 = `kept` [N]."""
    alpha, sigma = _levels(kept)
    return alpha * clean + sigma * noise


def target(kind: str, clean: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """What a model of this prediction type (epsilon, v_prediction, sample) is asked for."""
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    alpha, sigma = _levels(kept)
    return alpha * noise - sigma * clean


def level_weights(kind: str, kept: torch.Tensor, cap: float | None) -> torch.Tensor:
    """min-SNR weights [N] (arXiv 2303.09556, eq. 9 and its forms for v and x_0); ones without a cap."""
    if cap is None:
        return torch.ones_like(kept)
    ratio = kept / (1 - kept).clamp(min=1e-8)  # signal to noise
    capped = ratio.clamp(max=cap)
    if kind == "epsilon":
        return capped / ratio.clamp(min=1e-8)
    return capped if kind == "sample" else capped / (ratio + 1)


def time_chances(rule: str, weights: torch.Tensor) -> torch.Tensor:
    """How often each timestep is learned from [T], sums to 1: evenly (all), as its weight says (weighted), or the last alone.

    Where weights differ much, as min-SNR weights of v and of x_0 do, most items of an even batch hardly count. Picked by
    weight and then counted alike they have the same gradient on average, with less noise.

    >>> time_chances("weighted", torch.tensor([1.0, 2.0, 1.0])).tolist()
    [0.25, 0.5, 0.25]
    """
    if rule == "last":
        return torch.nn.functional.one_hot(torch.tensor(len(weights) - 1), len(weights)).double()
    chances = weights.double() if rule == "weighted" else torch.ones_like(weights, dtype=torch.float64)
    return chances / chances.sum()


def clean_of(kind: str, predicted: torch.Tensor, noisy: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The clean latents x_0 that a prediction of this type stands for."""
    alpha, sigma = _levels(kept)
    if kind == "sample":
        return predicted
    return alpha * noisy - sigma * predicted if kind == "v_prediction" else (noisy - sigma * predicted) / alpha


def huber_losses(predicted: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Pseudo-Huber error of each item [N]: blurs less than squares where several ends are possible (arXiv 2310.14189)."""
    error = (predicted.float() - wanted.float()).square()
    return ((error + HUBER_WIDTH**2).sqrt() - HUBER_WIDTH).mean((1, 2, 3))


def class_focus(own: torch.Tensor, rival: torch.Tensor, share: float) -> torch.Tensor:
    """How much the error at each place of an item counts [N, 1, h, w], 1 on average: `share` of it goes by where predictions
    [N, C, h, w] for the item's own class and for another differ.

    What tells classes apart is often small (a spot covers one place of 256), and its error is lost among what all of them share.
    """
    difference = (own.float() - rival.float()).square().mean(1, keepdim=True)
    capped = difference.minimum(FOCUS_CAP * difference.mean((2, 3), keepdim=True))
    mean = capped.mean((2, 3), keepdim=True)
    return 1 - share + share * torch.where(mean > 0, capped / mean.clamp(min=1e-30), 1.0)


def item_losses(
    predicted: torch.Tensor, wanted: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean squared error of each item [N]; with a mask [N, 1, h, w] of no negative values places count as it says."""
    error = (predicted.float() - wanted.float()).square()
    if mask is None:
        return weights * error.mean((1, 2, 3))
    covered = mask.sum((1, 2, 3)).clamp(min=1e-3) * error.shape[1]
    return weights * (error * mask).sum((1, 2, 3)) / covered


def _levels(kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    shaped = kept.view(-1, 1, 1, 1)
    return shaped.sqrt(), (1 - shaped).sqrt()
