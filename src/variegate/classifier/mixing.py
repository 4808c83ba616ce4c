"""Which image fills which place of a training batch: real or synthetic, and which one, for every step in advance.

replace: by an image made from the same real one (DA-Fusion, arXiv 2302.07944; weighted as in DIAGen).
pool: by any synthetic image (Diff-Mix, arXiv 2403.19600), its class in turn and not by chance. concat: every real and
synthetic image in turn. Pure: arrays and generators in, arrays out. The order of the real images has its own generator,
so that arms which share it see the same real images in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Policy = Literal["replace", "pool", "concat"]
Schedule = Literal["constant", "falling", "linear", "step", "warm-up"]
RULE = 3  # of how batches are filled and learned from; part of every classifier's key, as arms by different rules are not paired
WARM_UP = 1 / 6  # of the steps: 50 of gdl_term's 300 epochs


@dataclass(frozen=True, slots=True)
class Slots:
    """What fills the places of a run of batches."""

    is_synthetic: np.ndarray  # bool [...]
    index: np.ndarray  # int64 [...], into the real or into the synthetic images

    def shaped(self, *shape: int) -> Slots:
        return Slots(self.is_synthetic.reshape(shape), self.index.reshape(shape))


@dataclass(frozen=True, slots=True)
class Pool:
    """The synthetic images to choose from."""

    weights: np.ndarray  # float64 [M] >= 0; 0 = never used
    parents: np.ndarray  # int64 [M], index of the real image each was made from, -1 = none
    targets: np.ndarray  # int64 [M], the class each was drawn for

    def order(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` of its images by weight, evenly; int64 [count]."""
        mass = np.bincount(self.targets, weights=self.weights)
        return even_order(self.targets, mass / mass.sum(), count, rng, self.weights)


def parent_indices(sources: Sequence[str | None], real_ids: Sequence[str]) -> np.ndarray:
    """Where each synthetic image's source stands among the real ones; int64 [M], -1 where it has none there.

    >>> parent_indices(["b", None], ["a", "b"]).tolist()
    [1, -1]
    """
    places = {image_id: place for place, image_id in enumerate(real_ids)}
    return np.array([places.get(source, -1) if source is not None else -1 for source in sources], np.int64)


def inverse_count_weights(weights: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Diff-Mix's rule for long tails (arXiv 2403.19600): draw a target class with 1 / (n + 1), n its real images, then
    one of its synthetic images.

    `weights` float [M] shape the draw inside a class, `targets` int [M] are the classes drawn, `counts` int [C] real
    images. Gives float64 [M], its largest 1. A class without a usable image is left out; the released code fails there.

    >>> inverse_count_weights(np.ones(3), np.array([0, 0, 1]), np.array([9, 4, 1])).tolist()
    [0.25, 0.25, 1.0]
    """
    usable = np.bincount(targets, weights=weights, minlength=len(counts))  # [C], mass of each class's images
    shares = weights / np.maximum(usable[targets], np.finfo(np.float64).tiny) / (counts[targets] + 1.0)
    return shares / shares.max() if np.any(shares > 0) else shares


def real_counts(labels: Sequence[int] | np.ndarray, num_classes: int) -> np.ndarray:
    """Images of each class; int64 [C]."""
    return np.bincount(np.asarray(labels, np.int64), minlength=num_classes)


def class_uniform(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Chances to draw each image so that every class comes equally often: CMO's sampler of patches; float64 [N]."""
    chances = 1.0 / real_counts(labels, num_classes)[labels]
    return chances / chances.sum()


def num_steps(*, steps: int | None, epochs: int | None, num_real: int, batch: int) -> int:
    """Optimiser steps, the same for every arm: epochs count passes over the real images only.

    >>> num_steps(steps=None, epochs=60, num_real=50, batch=48)
    63
    """
    if steps is not None:
        return steps
    assert epochs is not None, "the recipe has either steps or epochs"
    return max(1, math.ceil(epochs * num_real / batch))


def even_order(
    labels: np.ndarray, shares: np.ndarray, count: int, rng: np.random.Generator, weights: np.ndarray | None = None
) -> np.ndarray:
    """`count` indices into `labels` int [N]: class c at every 1 / shares[c]-th place or so, its images in whole passes.

    Every stretch of n places holds n * shares[c] images of class c, give or take one: batches in which classes come by
    chance cost up to five points with few images (docs/log.md). Places are jittered, as pairs of neighbours are mixed.
    With `weights` float [N] a pass holds an image with probability weight / largest weight of its class. int64 [count].

    >>> labels = np.array([0, 0, 1])
    >>> labels[even_order(labels, np.array([0.5, 0.5]), 6, np.random.default_rng(0))].reshape(3, 2).sum(axis=1).tolist()
    [1, 1, 1]
    """
    weights = np.ones(len(labels)) if weights is None else weights
    classes = np.flatnonzero(shares > 0)
    numbers = [math.ceil((count + len(classes)) * shares[label]) + 1 for label in classes]
    times = [(np.arange(n) + rng.random(n)) / shares[label] for label, n in zip(classes, numbers, strict=True)]
    turns = np.repeat(classes, numbers)[np.argsort(np.concatenate([*times, np.empty(0)]), kind="stable")][:count]
    order, images, places = np.empty(len(turns), np.int64), _by_label(labels), _by_label(turns)
    for label in classes.tolist():
        own, here = images[label], places.get(label, turns[:0])
        order[here] = own[_passes(weights[own], len(here), rng)]
    return order


def _by_label(labels: np.ndarray) -> dict[int, np.ndarray]:
    """Where each label stands."""
    found, starts = np.unique(labels[(order := np.argsort(labels, kind="stable"))], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts)[1:], strict=True))


def _passes(weights: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Passes over images in ever new orders; each holds an image with probability weight / largest weight."""
    chances, taken, found = weights / weights.max(), [np.empty(0, np.int64)], 0
    while found < count:
        number = math.ceil((count - found) / max(1.0, float(chances.sum())))
        orders = rng.permuted(np.tile(np.arange(len(weights)), (number, 1)), axis=1)
        taken.append(orders[rng.random(orders.shape) < chances[orders]])
        found += len(taken[-1])
    return np.concatenate(taken)[:count]


def real_order(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` indices in passes over the real images, the classes evenly spread in each; int64 [count]."""
    return even_order(labels, np.bincount(labels) / max(len(labels), 1), count, rng)


def class_order(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` indices, every class as often as the next whatever its images.

    DIAGen draws with replacement by 1 / n instead, which comes to the same on average. int64 [count].
    """
    present = np.bincount(labels) > 0
    return even_order(labels, present / max(present.sum(), 1), count, rng)


def balanced_subset(
    real_labels: np.ndarray,
    synthetic_labels: np.ndarray,
    usable: np.ndarray,
    *,
    per_class: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """At most `per_class` images of each class out of both kinds together, each as likely as the next.

    Returns int64 indices of real and of synthetic images, in order; `usable` bool [M] says which synthetic ones count.
    """
    labels = np.concatenate([real_labels, np.where(usable, synthetic_labels, -1)])
    chosen = [rng.permutation(np.flatnonzero(labels == label))[:per_class] for label in np.unique(labels[labels >= 0])]
    index = np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)
    is_real = index < len(real_labels)
    return index[is_real], index[~is_real] - len(real_labels)


def real_only(order: np.ndarray) -> Slots:
    """Every place holds the next real image."""
    return Slots(np.zeros(len(order), bool), order)


def chances(fraction: float, schedule: Schedule, steps: int, batch: int) -> np.ndarray:
    """The chance of a synthetic image at every place of every batch; float64 [steps * batch].

    falling: from `fraction` evenly to 0, so that the last steps see real images only and wrong labels are unlearnt.
    The others are gdl_term's curriculum rho(e) times `fraction`, in shares of the steps where it has epochs. linear:
    from 0 evenly to `fraction`. step: 0, half and all of it in thirds. warm-up: 0 for a sixth, then linear.

    >>> chances(0.6, "falling", 3, 1).tolist(), chances(0.6, "constant", 1, 2).tolist()
    ([0.6, 0.3, 0.0], [0.6, 0.6])
    >>> chances(1.0, "linear", 3, 1).tolist(), chances(1.0, "step", 6, 1).tolist(), chances(1.0, "warm-up", 7, 1)[1:3]
    ([0.0, 0.5, 1.0], [0.0, 0.0, 0.5, 0.5, 1.0, 1.0], array([0. , 0.2]))
    """
    done = np.linspace(0.0, 1.0, steps)
    shape = {
        "constant": np.ones(steps),
        "falling": 1.0 - done,
        "linear": done,
        "step": np.arange(steps) * 3 // steps / 2,
        "warm-up": ((done - WARM_UP) / (1.0 - WARM_UP)).clip(min=0.0),
    }
    return np.repeat(fraction * shape[schedule], batch)


def mix(
    policy: Policy,
    order: np.ndarray,
    pool: Pool,
    *,
    fraction: float | np.ndarray,
    num_real: int,
    rng: np.random.Generator,
) -> Slots:
    """Put synthetic images into a stream of real ones; `order` is real_order's, and the result is as long.

    `fraction`: one chance for all places, or one for each (see `chances`). Raises ValueError where the policy has
    nothing to choose from, rather than training on real images alone.
    """
    if not np.any(pool.weights > 0):
        raise ValueError("there is no synthetic image with a weight above 0")
    if policy == "replace":
        return _replace(order, pool, fraction, rng)
    if policy == "pool":
        return _pool(order, pool, fraction, rng)
    return _concat(order, pool, num_real, rng)


def synthetic_only(count: int, pool: Pool, rng: np.random.Generator) -> Slots:
    """Synthetic images by weight, evenly."""
    if not np.any(pool.weights > 0):
        raise ValueError("there is no synthetic image with a weight above 0")
    return Slots(np.ones(count, bool), pool.order(count, rng))


def _pool(order: np.ndarray, pool: Pool, fraction: float | np.ndarray, rng: np.random.Generator) -> Slots:
    """The share of every batch as exact as whole images allow; real images go on where they were, so none is passed over."""
    reached = np.floor(np.cumsum(np.broadcast_to(fraction, len(order))) + rng.random())
    is_synthetic = np.diff(reached, prepend=0.0) > 0
    index, drawn = np.empty(len(order), np.int64), int(is_synthetic.sum())
    index[is_synthetic] = pool.order(len(order), rng)[:drawn]  # arms of other fractions begin alike
    index[~is_synthetic] = order[: len(order) - drawn]
    return Slots(is_synthetic, index)


def _replace(order: np.ndarray, pool: Pool, fraction: float | np.ndarray, rng: np.random.Generator) -> Slots:
    usable = np.flatnonzero((pool.parents >= 0) & (pool.weights > 0))
    if not len(usable):
        raise ValueError("no synthetic image was made from one of the real training images")
    usable = usable[np.argsort(pool.parents[usable], kind="stable")]
    parents, ends = pool.parents[usable], np.cumsum(pool.weights[usable])
    chance, place = rng.random(len(order)), rng.random(len(order))
    first, last = np.searchsorted(parents, order, "left"), np.searchsorted(parents, order, "right")
    is_synthetic = (chance < fraction) & (last > first)
    starts = np.concatenate([[0.0], ends])
    low, high = starts[first], starts[last]
    drawn = np.searchsorted(ends, low + place * (high - low), "right")
    drawn = np.clip(drawn, first, np.maximum(last - 1, first)).clip(max=len(usable) - 1)
    return Slots(is_synthetic, np.where(is_synthetic, usable[drawn], order))


def one_pass(num_real: int, pool: Pool, rng: np.random.Generator) -> Slots:
    """One shuffled pass over both: every real image once, a synthetic one with probability its weight (at most 1)."""
    if not np.any(pool.weights > 0):
        raise ValueError("there is no synthetic image with a weight above 0")
    chosen = rng.permutation(np.flatnonzero(rng.random(len(pool.weights)) < pool.weights))
    is_synthetic = rng.permutation(np.arange(num_real + len(chosen)) >= num_real)
    index = np.empty(len(is_synthetic), np.int64)
    index[~is_synthetic], index[is_synthetic] = np.arange(num_real), chosen
    return Slots(is_synthetic, index)


def _concat(order: np.ndarray, pool: Pool, num_real: int, rng: np.random.Generator) -> Slots:
    """Passes of `one_pass`, their real images in the given order."""
    passes: list[Slots] = []
    while sum(len(one.index) for one in passes) < len(order):
        passes.append(one_pass(num_real, pool, rng))
    is_synthetic = np.concatenate([one.is_synthetic for one in passes])[: len(order)]
    index = np.concatenate([one.index for one in passes])[: len(order)]
    index[~is_synthetic] = order[: np.count_nonzero(~is_synthetic)]
    return Slots(is_synthetic, index)
