"""Did it help? Means and paired differences with 95 % intervals, corrected for their number, and the answer in words. Pure.

Inside one draw of the training images an interval covers another choice of seeds (first weights, order, augmentation) and of
test images (`two_way`). Over several draws the draw is what is independent: seeds are averaged inside it (`over_draws`), and where
all draws share their test images, another choice of those is covered besides (`over_draws_and_images`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
RESAMPLES = 9_999  # of the bootstrap
BOOTSTRAP_SEED = 20230603


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % interval; all of it in fractions."""

    mean: float
    low: float
    high: float
    detectable: (
        float  # about the smallest true difference from 0 that would be seen 4 times in 5; see Estimate.interval
    )
    num_seeds: int

    @property
    def is_zero_inside(self) -> bool:
        return self.low <= 0.0 <= self.high


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its standard error and the degrees of freedom of that."""

    mean: float
    error: float
    freedom: float
    num: int  # seeds, or draws

    def interval(self, tests: int = 1) -> Interval:
        """Student's 95 % interval.

        `detectable` is for one of `tests` differences that are corrected together (Bonferroni's level, Holm's first step). It
        takes the error found here for the true one. Of a few seeds that is a rough guess: in simulations such a difference
        was seen 61 to 79 % of the time with 2 or 3 seeds, 79 to 81 % with 5 or 10.
        """
        reach = float(stats.t.ppf(0.5 + LEVEL / 2, self.freedom))
        strict = float(stats.t.ppf(1.0 - (1.0 - LEVEL) / (2 * tests), self.freedom))
        detectable = (strict + float(stats.t.ppf(POWER, self.freedom))) * self.error
        return Interval(self.mean, self.mean - reach * self.error, self.mean + reach * self.error, detectable, self.num)

    @property
    def p_value(self) -> float:
        """Of no difference, two-sided."""
        return float(2.0 * stats.t.sf(abs(self.mean) / self.error, self.freedom))


def two_way(values: np.ndarray) -> Estimate:
    """Mean of values [seeds, images] with an error over both.

    variance = var over seeds of the seeds' means / S + var over images of the images' means / N, each with its own
    degrees of freedom joined by Satterthwaite's rule. The noise of single cells is in both terms, which errs on the
    wide side. With one seed there is only the second term: that error says nothing of other seeds.
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
    return Estimate(float(values.mean()), float(np.sqrt(variance)), float(freedom), num_seeds)


def two_way_interval(values: np.ndarray) -> Interval:
    """The 95 % interval of `two_way`."""
    return two_way(values).interval()


def over_draws(values: Sequence[float]) -> Estimate:
    """Mean of independent values, one a draw of training images, with Student's error.

    Raises ValueError for fewer than 2 values: one draw says nothing of other draws.
    """
    found = np.asarray(values, np.float64)
    if len(found) < 2:
        raise ValueError(f"an interval over draws needs at least 2 of them, got {len(found)}")
    error = max(float(found.std(ddof=1)) / np.sqrt(len(found)), np.finfo(np.float64).tiny)
    return Estimate(float(found.mean()), float(error), len(found) - 1, len(found))


def over_draws_and_images(values: Sequence[np.ndarray], same_images: bool) -> Estimate:
    """Mean over draws of values [seeds, images], with an error over draws and over test images.

    Draws that are tested on images of their own vary by those, too. Draws that share them do not, so the variance of a crossed
    design's image effect is added, with its own degrees of freedom joined by Satterthwaite's rule: (mean square of images -
    mean square of the rest) / (draws x images), where that is above 0. Where that interval is wider than the draws' own, their
    error is raised to give it; it is never lowered, as many images do not make up for few draws.

    The error is never below the smallest step that all draws together can show. Raises ValueError as `over_draws`.
    """
    means = [one.mean(axis=0) for one in values]  # of each draw, over seeds: [images]
    draws = over_draws([float(one.mean()) for one in means])
    of_draws = max(draws.error, 1.0 / sum(one.size for one in values)) ** 2
    if same_images:
        table = np.stack(means)
        rest = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
        num_draws, num_images = table.shape
        noise = (rest**2).sum() / ((num_draws - 1) * (num_images - 1))
        square = num_draws * table.mean(axis=0).var(ddof=1)
        of_images, freedom, others = max(square - noise, 0.0) / table.size, num_images - 1, of_draws
    else:  # draws that agree by chance: their images alone leave more open than that
        of_images = sum(one.var(ddof=1) / one.size for one in means) / len(means) ** 2
        freedom, others = sum(one.size - 1 for one in means), 0.0
    variance = of_images + others
    joined = variance**2 / (of_images**2 / freedom + others**2 / draws.freedom) if variance else draws.freedom
    student = [float(stats.t.ppf(0.5 + LEVEL / 2, one)) for one in (joined, draws.freedom)]
    error = max(np.sqrt(of_draws), np.sqrt(variance) * student[0] / student[1])
    return Estimate(draws.mean, float(error), draws.freedom, draws.num)


def paired_interval(differences: Sequence[float]) -> Interval:
    """The 95 % interval of `over_draws`."""
    return over_draws(differences).interval()


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by resampling draws: bias-corrected and accelerated (BCa), 9,999 times, seeded.

    Too narrow below about 8 draws, as every bootstrap; it stands beside Student's interval and decides nothing. Where all values
    are equal there is nothing to resample and both ends are that value.
    """
    found = np.asarray(values, np.float64)
    if len(found) < 2:
        raise ValueError(f"a bootstrap over draws needs at least 2 of them, got {len(found)}")
    if np.ptp(found) < 1e-12:
        return float(found[0]), float(found[0])
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    method = "BCa" if len(found) > 2 else "percentile"  # two values leave the acceleration nothing to be measured on
    result = stats.bootstrap(
        (found,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method=method, rng=rng, vectorized=True
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (1979): p values that may be read as if only one test had been made.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    corrected, highest = {}, 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        highest = max(highest, min((len(p_values) - rank) * value, 1.0))
        corrected[name] = highest
    return {name: corrected[name] for name in p_values}


def in_words(interval: Interval, what: str = "seed") -> str:
    """A difference the way people say it.

    >>> in_words(Interval(0.061, 0.039, 0.083, 0.02, 3))
    '+6.1 points (95 % 3.9 to 8.3, 3 seeds)'
    """
    count = f"{interval.num_seeds} {what}{'s' * (interval.num_seeds != 1)}"
    points = [_points(value) for value in (interval.low, interval.high)]
    return f"{_signed(interval.mean)} points (95 % {points[0]} to {points[1]}, {count})"


def verdict(interval: Interval, what: str = "seed", *, corrected: float | None = None, tests: int = 1) -> str:
    """helps, hurts, or no difference seen together with what could have been seen.

    `corrected` is the p value after correction for `tests` differences looked at together; a difference that only an uncorrected
    interval shows is called none.
    """
    words = in_words(interval, what)
    only = "; one seed says nothing of other seeds" if what == "seed" and interval.num_seeds == 1 else ""
    if interval.is_zero_inside or (corrected is not None and corrected > 1.0 - LEVEL):
        why = "" if interval.is_zero_inside else f" after correction for {tests} methods"
        return f"no difference seen{why}: {words}; {could_have_seen(interval.detectable, what)}{only}"
    return f"{'helps' if interval.mean > 0 else 'hurts'}: {words}{only}"


def could_have_seen(detectable: float, what: str = "seed") -> str:
    """The smallest effect in words.

    >>> could_have_seen(0.024), could_have_seen(1.4, "draw")
    ('could have seen about 2.4 points', 'so few draws could have shown no difference at all')
    """
    if detectable >= 1.0:
        return f"so few {what}s could have shown no difference at all"
    return f"could have seen about {_points(detectable)} points"


def _points(fraction: float) -> str:
    text = f"{100 * fraction:.1f}"
    return "0.0" if text == "-0.0" else text


def _signed(fraction: float) -> str:
    text = _points(fraction)
    return text if text.startswith("-") or text == "0.0" else f"+{text}"
