"""Did it help? Means and paired differences with 95 % intervals, and the answer in words. Pure.

An interval covers both another choice of seeds (first weights, order, augmentation) and another choice of test images.
It does not cover another draw of training images; for that see `paired_interval` over draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; all of it in fractions."""

    mean: float
    low: float
    high: float
    detectable: float  # about the smallest true difference from 0 that would be seen 4 times in 5; see _interval
    num_seeds: int

    @property
    def is_zero_inside(self) -> bool:
        return self.low <= 0.0 <= self.high


def two_way_interval(values: np.ndarray) -> Interval:
    """Mean of values [seeds, images] with an interval over both.

    variance = var over seeds of the seeds' means / S + var over images of the images' means / N, each with its own
    degrees of freedom joined by Satterthwaite's rule. The noise of single cells is in both terms, which errs on the
    wide side. With one seed there is only the second term: that interval says nothing of other seeds.
    """
    values = np.asarray(values, np.float64)
    num_seeds, num_images = values.shape
    if num_images < 2:
        raise ValueError(f"an interval needs at least 2 test images, got {num_images}")
    terms = [(values.mean(axis=0).var(ddof=1) / num_images, num_images - 1)]
    if num_seeds > 1:
        terms.append((values.mean(axis=1).var(ddof=1) / num_seeds, num_seeds - 1))
    # Arms that agree on every image would have no width at all; the smallest step that one image can make is its floor.
    variance = max(sum(part for part, _ in terms), (1.0 / (num_seeds * num_images)) ** 2)
    weight = sum(part**2 / freedom for part, freedom in terms)
    freedom = min(variance**2 / weight, num_images - 1) if weight > 0 else num_images - 1
    return _interval(float(values.mean()), float(np.sqrt(variance)), freedom, num_seeds)


def paired_interval(differences: Sequence[float]) -> Interval:
    """Mean of independent paired differences (one per draw of training images) with Student's t interval.

    Raises ValueError for fewer than 2: one draw says nothing of other draws.
    """
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        raise ValueError(f"an interval over draws needs at least 2 of them, got {len(values)}")
    return _interval(
        float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))), len(values) - 1, len(values)
    )


def in_words(interval: Interval, what: str = "seed") -> str:
    """A difference the way people say it.

    >>> in_words(Interval(0.061, 0.039, 0.083, 0.02, 3))
    '+6.1 points (95 % 3.9 to 8.3, 3 seeds)'
    """
    count = f"{interval.num_seeds} {what}{'s' * (interval.num_seeds != 1)}"
    points = [_points(value) for value in (interval.low, interval.high)]
    return f"{_signed(interval.mean)} points (95 % {points[0]} to {points[1]}, {count})"


def verdict(interval: Interval, what: str = "seed") -> str:
    """helps, hurts, or no difference seen together with what could have been seen."""
    words = in_words(interval, what)
    only = "; one seed says nothing of other seeds" if what == "seed" and interval.num_seeds == 1 else ""
    if interval.is_zero_inside:
        return f"no difference seen: {words}; could have seen about {_points(interval.detectable)} points{only}"
    return f"{'helps' if interval.mean > 0 else 'hurts'}: {words}{only}"


def _interval(mean: float, error: float, freedom: float, num_seeds: int) -> Interval:
    """`detectable` takes the error found here for the true one. Of a few seeds that is a rough guess: in simulations such
    a difference was seen 61 to 79 % of the time with 2 or 3 seeds, 79 to 81 % with 5 or 10."""
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom))
    detectable = (reach + float(stats.t.ppf(POWER, freedom))) * error
    return Interval(mean, mean - reach * error, mean + reach * error, detectable, num_seeds)


def _points(fraction: float) -> str:
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def _signed(fraction: float) -> str:
    text = _points(fraction)
    return text if text.startswith("-") or text == "0.0" else f"+{text}"
