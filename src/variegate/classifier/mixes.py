"""Mix the images of a batch with each other, or with pictures of nothing, by the recipe's `train.mix`.

mixup, cutmix (arXiv 1710.09412, 1905.04899): torchvision's. manifold-mixup (arXiv 1806.05236): features inside the net.
puzzle-mix (arXiv 2009.06962): blocks chosen by saliency, see puzzle.py. fractal-mixup (gdl_term): fractals laid over.
All randomness comes from torch's global generator, which the training loop seeds in every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache, partial

import numpy as np
import torch
from torch import nn

from variegate.classifier.augment import Batch, make_mix, to_unit
from variegate.classifier.models import Classifier, stages_of
from variegate.classifier.puzzle import puzzle_mix

# Gives the mixed batch, to be put through the net inside the block: features may be mixed on the way.
Mix = Callable[[torch.Tensor, torch.Tensor], AbstractContextManager[Batch]]

MANIFOLD_ALPHA = 2.0
NUM_FRACTALS, FRACTAL_SHARE = 256, (0.2,)


def open_mix(
    name: str,
    classifier: Classifier,
    *,
    transport: bool,
    autocast: bool,
    probability: float = 1.0,
    alpha: float | None = None,
    fractal_share: Sequence[float] = FRACTAL_SHARE,
) -> Mix:
    """The mix a recipe names, of images scaled for `classifier`; rows of targets keep their mass.

    A batch is mixed with `probability`; `alpha` and `fractal_share` are the recipe's keys.
    """
    mix = _always(name, classifier, transport=transport, autocast=autocast, alpha=alpha, fractal_share=fractal_share)
    if probability == 1.0:  # nothing to toss for: the random numbers of the mix stay the same
        return mix
    return lambda *batch: mix(*batch) if float(torch.rand(())) < probability else nullcontext(batch)


def _always(
    name: str,
    classifier: Classifier,
    *,
    transport: bool,
    autocast: bool,
    alpha: float | None,
    fractal_share: Sequence[float],
) -> Mix:
    if name == "manifold-mixup":
        return lambda images, targets: _inside(classifier.net, images, targets, alpha or MANIFOLD_ALPHA)
    mix: Callable[[torch.Tensor, torch.Tensor], Batch]
    if name == "puzzle-mix":
        mix = partial(puzzle_mix, classifier, transport=transport, autocast=autocast)
    elif name == "fractal-mixup":
        mix = partial(_fractal_mixup, classifier, fractal_share)
    else:
        mix = make_mix(name, alpha)
    return lambda images, targets: nullcontext(mix(images, targets))


@contextmanager
def _inside(net: nn.Module, images: torch.Tensor, targets: torch.Tensor, alpha: float) -> Iterator[Batch]:
    """Mix the images, or what comes out of one of the first half of the net's stages, with one lambda for the batch."""
    stages = stages_of(net)
    layer = int(torch.randint(math.ceil(len(stages) / 2) + 1, ()))
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    order = torch.randperm(len(images)).to(images.device)

    def mixed(values: torch.Tensor) -> torch.Tensor:
        return share * values + (1.0 - share) * values[order]

    if layer == 0:
        yield mixed(images), mixed(targets)
        return
    hook = stages[layer - 1].register_forward_hook(lambda _, given, found: mixed(found))
    try:
        yield images, mixed(targets)
    finally:
        hook.remove()


def _fractal_mixup(
    classifier: Classifier, share: Sequence[float], images: torch.Tensor, targets: torch.Tensor
) -> Batch:
    """A fractal shows no class, so the labels stay as they are."""
    return overlay(images, fractals(images.shape[-1]), classifier, share), targets


def overlay(
    images: torch.Tensor, pictures: np.ndarray, classifier: Classifier, share: Sequence[float] = FRACTAL_SHARE
) -> torch.Tensor:
    """Each image float [B, 3, S, S] under one of the pictures uint8 [N, S, S, 3], scaled like the image; `share` of the
    picture is one number, or the ends of what is drawn uniformly for each image."""
    chosen = torch.randint(len(pictures), (len(images),)).numpy()
    over = classifier.scaled(to_unit(torch.from_numpy(pictures[chosen]).to(images.device)))
    low, high = share[0], share[-1]
    if low == high:
        return torch.lerp(images, over, low)
    weight = low + (high - low) * torch.rand(len(images), 1, 1, 1)
    return torch.lerp(images, over, weight.to(images.device))


@lru_cache(maxsize=1)
def fractals(size_px: int) -> np.ndarray:
    """The pictures of fractal-mixup, the same in every run; uint8 [NUM_FRACTALS, size_px, size_px, 3]."""
    from variegate.fractals import draw_fractals

    return draw_fractals(range(NUM_FRACTALS), size_px)
