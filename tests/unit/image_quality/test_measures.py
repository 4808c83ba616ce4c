"""Measures of image features against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import sqrtm

from variegate.image_quality.measures import Diversity, frechet, kid, neighbourhoods, vendi


def exactly(mean: np.ndarray, root: np.ndarray, count: int = 400) -> np.ndarray:
    """Rows with exactly this mean and the covariance root' root."""
    raw = np.random.default_rng(0).normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    q = np.linalg.qr(raw)[0] * np.sqrt(count - 1)
    return q @ root + mean


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    """Diagonal covariances: sum of (mean gap)^2 + (sigma - sigma')^2."""
    one = exactly(np.array([0.0, 1.0, 2.0]), np.diag([1.0, 2.0, 3.0]))
    other = exactly(np.array([1.0, 1.0, 0.0]), np.diag([2.0, 2.0, 0.5]))
    assert frechet(one, other) == pytest.approx(1 + 4 + 1 + 0 + 2.5**2, abs=1e-8)


def test_frechet_agrees_with_the_matrix_root_and_needs_no_full_rank() -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(50, 4)), rng.normal(size=(60, 4)) @ rng.normal(size=(4, 4)) + 0.3
    covariances = [np.cov(values, rowvar=False) for values in (one, other)]
    gap = one.mean(axis=0) - other.mean(axis=0)
    expected = gap @ gap + np.trace(sum(covariances) - 2 * sqrtm(covariances[0] @ covariances[1]).real)
    assert frechet(one, other) == pytest.approx(expected, rel=1e-9)
    few = rng.normal(size=(5, 300))
    assert frechet(few, few) == pytest.approx(0.0, abs=1e-9)
    assert frechet(few, few + 1.0) == pytest.approx(300.0)


def test_frechet_of_small_samples_is_too_large_and_the_floor_shows_it() -> None:
    rng = np.random.default_rng(2)
    few, many = (frechet(rng.normal(size=(n, 20)), rng.normal(size=(n, 20))) for n in (30, 3000))
    assert few > 20 * many > 0


def test_kid_is_unbiased_and_its_standard_error_true() -> None:
    rng = np.random.default_rng(3)
    found = [kid(rng.normal(size=(40, 8)), rng.normal(size=(60, 8))) for _ in range(400)]
    values = np.array(found)[:, 0]
    assert abs(values.mean()) < 3 * values.std() / 20
    assert values.min() < 0 < values.max()
    shifted = np.array([kid(rng.normal(size=(40, 8)) + 1.0, rng.normal(size=(60, 8))) for _ in range(200)])
    assert np.sqrt((shifted[:, 1] ** 2).mean()) == pytest.approx(shifted[:, 0].std(), rel=0.2)
    assert shifted[:, 0].mean() > 4 * shifted[:, 0].std()


def test_kid_is_the_double_sum_of_its_definition() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(4, 3)), rng.normal(size=(5, 3))

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    xx = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([kernel(a, b) for a in x for b in y])
    assert kid(x, y)[0] == pytest.approx(xx + yy - 2 * xy)
    left_out = (
        [kid(np.delete(x, i, axis=0), y)[0] for i in range(4)],
        [kid(x, np.delete(y, i, axis=0))[0] for i in range(5)],
    )
    variance = sum((len(one) - 1) / len(one) * np.sum((one - np.mean(one)) ** 2) for one in left_out)
    assert kid(x, y)[1] == pytest.approx(np.sqrt(variance))


def test_neighbourhoods_of_the_same_and_of_far_sets() -> None:
    real = np.random.default_rng(5).normal(size=(80, 6))
    same, far = neighbourhoods(real, real), neighbourhoods(real + 100.0, real)
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    assert same["density"] > 1.0
    assert set(far.values()) == {0.0}


def test_one_image_many_times_is_precise_and_covers_little() -> None:
    real = np.random.default_rng(6).normal(size=(80, 6))
    found = neighbourhoods(np.repeat(real[:1], 80, axis=0) + 1e-6 * real, real)
    assert found["precision"] == 1.0 and found["recall"] < 0.1 and found["coverage"] < 0.3


def test_density_of_the_papers_example_is_one_in_expectation() -> None:
    """Two samples of one distribution: density about 1, coverage about 1 - 2^-k (Naeem et al., lemma 2)."""
    rng = np.random.default_rng(7)
    found = [neighbourhoods(rng.normal(size=(400, 16)), rng.normal(size=(400, 16))) for _ in range(4)]
    assert np.mean([one["density"] for one in found]) == pytest.approx(1.0, abs=0.06)
    assert np.mean([one["coverage"] for one in found]) == pytest.approx(1 - 0.5**5, abs=0.02)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_vendi_counts_different_images(count: int) -> None:
    assert vendi(np.eye(9)[:count] * 7.0) == pytest.approx(count)
    assert vendi(np.repeat(np.eye(9)[:count], 3, axis=0)) == pytest.approx(count)


def test_diversity_is_lpips_mean_over_all_pairs() -> None:
    """Unit vectors at every place of every layer; half the squared distance, mean over places, layers and pairs."""
    rng = np.random.default_rng(8)
    layers = [rng.normal(size=(7, 5, 4, 4)), rng.normal(size=(7, 3, 2, 2))]
    layers[0][2, :, 1, 1] = 0.0  # nothing seen there
    diversity = Diversity()
    diversity.add([layer[:4] for layer in layers])
    diversity.add([layer[4:] for layer in layers])
    units = [layer / np.maximum(np.linalg.norm(layer, axis=1, keepdims=True), 1e-12) for layer in layers]
    pairs = [
        np.mean([((unit[i] - unit[j]) ** 2).sum(axis=0).mean() / 2 for unit in units])
        for i in range(7)
        for j in range(i)
    ]
    assert diversity.value == pytest.approx(np.mean(pairs))


def test_diversity_of_equal_images_is_nothing_and_of_one_unknown() -> None:
    diversity = Diversity()
    assert diversity.value is None
    diversity.add([np.ones((1, 3, 2, 2), np.float32)])
    assert diversity.value is None
    diversity.add([np.ones((3, 3, 2, 2), np.float32)])
    assert diversity.value == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("measure", [frechet, kid, neighbourhoods])
def test_too_few_images_are_refused(measure) -> None:
    with pytest.raises(ValueError, match="at least"):
        measure(np.ones((1, 3)), np.ones((9, 3)))
