"""Intervals that hold what they promise, and words that say what they mean."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.statistics import Interval, in_words, paired_interval, two_way_interval, verdict


def correctness(rng: np.random.Generator, gain: float, num_seeds: int, num_images: int) -> np.ndarray:
    """Differences [seeds, images] of two arms whose accuracies differ by `gain`; seeds and images both matter."""
    easy = rng.normal(0.5, 1.0, (1, num_images))  # how easy each image is, for both arms
    arms = []
    for bonus in (0.0, gain):
        skill = rng.normal(0.0, 0.08, (num_seeds, 1)) + rng.normal(0.0, 0.4, (1, num_images)) + bonus
        arms.append(easy + skill + rng.normal(0.0, 0.5, (num_seeds, num_images)) > 0)
    return arms[1].astype(float) - arms[0].astype(float)


@pytest.mark.parametrize(("num_seeds", "gain"), [(2, 0.0), (3, 0.0), (3, 0.3), (5, 0.3), (10, 0.1)])
def test_intervals_hold_the_truth_about_95_times_in_100(num_seeds: int, gain: float) -> None:
    rng = np.random.default_rng([num_seeds, int(10 * gain)])
    truth = np.mean([correctness(rng, gain, 20, 500).mean() for _ in range(200)])
    found = [two_way_interval(correctness(rng, gain, num_seeds, 300)) for _ in range(600)]
    coverage = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.92 <= coverage <= 0.995


def test_arms_that_are_alike_rarely_differ() -> None:
    rng = np.random.default_rng(3)
    found = [two_way_interval(correctness(rng, 0.0, 3, 300)) for _ in range(500)]
    assert np.mean([not one.is_zero_inside for one in found]) < 0.08


def test_a_detectable_difference_is_seen_most_times() -> None:
    rng = np.random.default_rng(5)
    draws = [correctness(rng, 0.35, 3, 300) for _ in range(400)]
    typical = float(np.median([two_way_interval(one).detectable for one in draws]))
    truth = float(np.mean(draws))
    seen = np.mean([two_way_interval(one - truth + typical).low > 0 for one in draws])
    assert 0.55 <= seen <= 0.9  # meant is 0.8; three seeds tell little of their own spread, see _interval


def test_more_seeds_and_more_images_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    values = correctness(rng, 0.3, 10, 1000)
    whole = two_way_interval(values)
    for part in (values[:3], values[:, :100]):
        smaller = two_way_interval(part)
        assert smaller.high - smaller.low > whole.high - whole.low


def test_one_seed_covers_images_only_and_says_so() -> None:
    interval = two_way_interval(np.array([[1.0] * 30 + [0.0] * 30]))
    assert interval.num_seeds == 1
    assert "one seed says nothing of other seeds" in verdict(interval)
    assert "1 seed)" in in_words(interval)


def test_equal_predictions_are_no_difference_with_a_width() -> None:
    interval = two_way_interval(np.zeros((3, 100)))
    assert interval.low < 0 < interval.high
    assert interval.detectable > 0
    assert verdict(interval).startswith("no difference seen: 0.0 points")


def test_a_difference_in_every_image_and_seed_is_finite() -> None:
    interval = two_way_interval(np.ones((2, 50)))
    assert np.isfinite([interval.low, interval.high, interval.detectable]).all()
    assert interval.low > 0.9


def test_words() -> None:
    assert verdict(Interval(0.061, 0.039, 0.083, 0.03, 3)) == "helps: +6.1 points (95 % 3.9 to 8.3, 3 seeds)"
    assert verdict(Interval(-0.02, -0.03, -0.01, 0.01, 3)) == "hurts: -2.0 points (95 % -3.0 to -1.0, 3 seeds)"
    words = verdict(Interval(0.01, -0.008, 0.028, 0.024, 3))
    assert words == "no difference seen: +1.0 points (95 % -0.8 to 2.8, 3 seeds); could have seen about 2.4 points"


def test_paired_interval_over_draws_is_students_t() -> None:
    interval = paired_interval([0.02, 0.05, 0.03, 0.06])
    assert interval.mean == pytest.approx(0.04)
    assert interval.low == pytest.approx(0.04 - 3.18245 * 0.00912871, abs=1e-5)
    assert in_words(interval, "draw").endswith("4 draws)")
    with pytest.raises(ValueError, match="at least 2"):
        paired_interval([0.1])


def test_two_images_are_the_least() -> None:
    with pytest.raises(ValueError, match="at least 2 test images"):
        two_way_interval(np.ones((3, 1)))
