"""Which image fills which place: shares, weights, parents, pairing and passes."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.classifier import mixing

POOL = mixing.Pool(
    weights=np.array([1.0, 0.5, 0.0, 1.0]), parents=np.array([0, 0, 0, 2]), targets=np.array([0, 0, 0, 1])
)


def order(count: int = 9000, num_real: int = 3) -> np.ndarray:
    return mixing.real_order(np.arange(num_real), count, np.random.default_rng(7))


def mixed(policy: mixing.Policy, fraction: float = 0.4, seed: int = 0) -> mixing.Slots:
    rng = np.random.default_rng(seed)
    return mixing.mix(policy, order(), POOL, fraction=fraction, num_real=3, rng=rng)


def test_real_images_come_in_whole_passes() -> None:
    passes = order(30, 10).reshape(3, 10)
    assert all(sorted(one) == list(range(10)) for one in passes.tolist())
    assert passes[0].tolist() != passes[1].tolist()


def test_replace_puts_only_images_made_from_the_same_real_one() -> None:
    slots, real = mixed("replace"), order()
    taken = slots.is_synthetic
    assert (POOL.parents[slots.index[taken]] == real[taken]).all()
    assert not taken[real == 1].any()  # nothing was made from image 1
    assert taken[real == 2].mean() == pytest.approx(0.4, abs=0.03)
    from_first = slots.index[taken & (real == 0)]
    assert not np.any(from_first == 2)  # its weight is 0
    assert np.mean(from_first == 0) == pytest.approx(2 / 3, abs=0.04)  # weights 1 and 0.5


def test_pool_takes_any_by_weight_and_keeps_the_share() -> None:
    slots = mixed("pool")
    assert slots.is_synthetic.mean() == pytest.approx(0.4, abs=0.02)
    shares = np.bincount(slots.index[slots.is_synthetic], minlength=4) / slots.is_synthetic.sum()
    assert shares == pytest.approx([0.4, 0.2, 0.0, 0.4], abs=0.03)


def test_concat_holds_every_image_once_a_pass() -> None:
    slots = mixed("concat")
    real = np.bincount(slots.index[~slots.is_synthetic], minlength=3)
    synthetic = np.bincount(slots.index[slots.is_synthetic], minlength=4)
    assert real.max() - real.min() <= 1
    assert synthetic / real.mean() == pytest.approx([1.0, 0.5, 0.0, 1.0], abs=0.05)


@pytest.mark.parametrize("policy", ["replace", "pool", "concat"])
def test_real_images_that_stay_keep_the_shared_order(policy: mixing.Policy) -> None:
    slots, real = mixed(policy), order()
    stayed = slots.index[~slots.is_synthetic]
    expected = real[~slots.is_synthetic] if policy == "replace" else real[: len(stayed)]
    assert stayed.tolist() == expected.tolist()


@pytest.mark.parametrize("policy", ["replace", "pool", "concat"])
def test_equal_generators_give_equal_slots(policy: mixing.Policy) -> None:
    one, two, other = mixed(policy), mixed(policy), mixed(policy, seed=1)
    assert (one.index == two.index).all()
    assert (one.is_synthetic == two.is_synthetic).all()
    assert (one.is_synthetic != other.is_synthetic).any()


def test_fraction_ends() -> None:
    assert not mixed("pool", 0.0).is_synthetic.any()
    assert mixed("pool", 1.0).is_synthetic.all()


def test_synthetic_only_respects_weights() -> None:
    slots = mixing.synthetic_only(5000, POOL, np.random.default_rng(0))
    assert slots.is_synthetic.all()
    assert np.bincount(slots.index, minlength=4) / 5000 == pytest.approx([0.4, 0.2, 0.0, 0.4], abs=0.03)


@pytest.mark.parametrize("policy", ["replace", "pool", "concat"])
def test_nothing_to_choose_from_is_refused_not_trained_on_real_alone(policy: mixing.Policy) -> None:
    empty = mixing.Pool(np.zeros(2), np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="no synthetic image"):
        mixing.mix(policy, order(), empty, fraction=0.5, num_real=3, rng=np.random.default_rng(0))


def test_replace_without_any_parent_is_refused() -> None:
    orphans = mixing.Pool(np.ones(2), np.array([-1, -1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="was made from"):
        mixing.mix("replace", order(), orphans, fraction=0.5, num_real=3, rng=np.random.default_rng(0))


def test_epochs_count_real_images_only() -> None:
    assert mixing.num_steps(steps=None, epochs=10, num_real=50, batch=25) == 20
    assert mixing.num_steps(steps=7, epochs=None, num_real=50, batch=25) == 7
    assert mixing.num_steps(steps=None, epochs=1, num_real=3, batch=48) == 1


def test_a_falling_schedule_ends_with_real_images_only() -> None:
    chance = mixing.chances(0.8, "falling", 100, 10)
    order = mixing.real_order(np.arange(20), 1000, np.random.default_rng(0))
    pool = mixing.Pool(np.ones(5), np.full(5, -1), np.arange(5))
    taken = mixing.mix("pool", order, pool, fraction=chance, num_real=20, rng=np.random.default_rng(1)).is_synthetic
    assert 0.65 < taken[:100].mean() < 0.9 and taken[-20:].sum() == 0
    assert 0.35 < taken.mean() < 0.45


def test_inverse_counts_draw_rare_classes_first_however_many_images_each_has() -> None:
    """Diff-Mix: the class with 1 / (n + 1), then one of its images; curate's weights shape the draw inside the class."""
    targets, weights = np.array([0] * 50 + [1] * 5 + [2]), np.ones(56)
    weights[50] = 3.0
    found = mixing.inverse_count_weights(weights, targets, np.array([99, 9, 1]))
    by_class = np.bincount(targets, found)
    assert by_class / by_class.sum() == pytest.approx(np.array([0.01, 0.1, 0.5]) / 0.61)
    assert found[50] / found[51] == pytest.approx(3.0)
    assert found.max() == 1.0


def test_a_class_without_a_synthetic_image_is_passed_over() -> None:
    """Diff-Mix's weighted draw raises there."""
    weights, targets = np.array([1.0, 0.5, 0.0]), np.array([0, 0, 2])
    found = mixing.inverse_count_weights(weights, targets, np.array([9, 4, 1]))
    assert found.tolist() == pytest.approx([1.0, 0.5, 0.0])
    pool = mixing.Pool(found, np.full(3, -1), targets)
    rng = np.random.default_rng(0)
    slots = mixing.mix("pool", order(), pool, fraction=0.5, num_real=3, rng=rng)
    assert set(slots.index[slots.is_synthetic].tolist()) == {0, 1}
    nothing = mixing.inverse_count_weights(np.zeros(2), np.array([0, 1]), np.array([1, 1]))
    with pytest.raises(ValueError, match="no synthetic image"):
        mixing.mix(
            "pool", order(), mixing.Pool(nothing, np.full(2, -1), np.array([0, 1])), fraction=0.5, num_real=3, rng=rng
        )


@pytest.mark.parametrize("schedule", ["linear", "step", "warm-up"])
def test_a_curriculum_starts_with_real_images_and_ends_at_the_fraction(schedule: mixing.Schedule) -> None:
    """gdl_term's curriculum: never called by its training script, and in absolute epochs, so that shorter runs never
    left the first third. Here every number of steps goes through all of it."""
    for steps in (3, 30, 299):
        chance = mixing.chances(0.8, schedule, steps, 4).reshape(steps, 4)
        assert (chance == chance[:, :1]).all() and (np.diff(chance[:, 0]) >= 0).all()
        assert chance[0].max() == 0.0 and chance[-1].tolist() == pytest.approx([0.8] * 4)
    third, sixth = mixing.chances(1.0, schedule, 300, 1)[99::100], mixing.chances(1.0, schedule, 300, 1)[:50]
    assert third == pytest.approx(
        {"linear": [0.33, 0.67, 1], "step": [0, 0.5, 1], "warm-up": [0.2, 0.6, 1]}[schedule], abs=0.01
    )
    assert (sixth.max() == 0.0) == (schedule != "linear")


def test_a_curriculum_takes_variants_of_the_same_image() -> None:
    """gdl_term returns the augmented version of the image it would have returned: that is policy replace."""
    chance = mixing.chances(1.0, "linear", 900, 10)
    slots = mixing.mix("replace", order(), POOL, fraction=chance, num_real=3, rng=np.random.default_rng(0))
    real, taken = order(), slots.is_synthetic
    assert (POOL.parents[slots.index[taken]] == real[taken]).all()
    early, late = taken[:3000][real[:3000] != 1].mean(), taken[-3000:][real[-3000:] != 1].mean()
    assert early == pytest.approx(1 / 6, abs=0.04) and late == pytest.approx(5 / 6, abs=0.04)


def test_a_balanced_subset_is_drawn_from_both_kinds_alike() -> None:
    """gdl_term's subset needs an array of labels and breaks on the list that its loader gives it."""
    real, synthetic = np.repeat([0, 1, 2], [10, 50, 4]), np.repeat([0, 1, 2], [10, 150, 1])
    usable = np.arange(len(synthetic)) % 2 == 0
    draws = [
        mixing.balanced_subset(real, synthetic, usable, per_class=12, rng=np.random.default_rng(seed))
        for seed in range(60)
    ]
    for kept, drawn in draws:
        counts = np.bincount(real[kept], minlength=3) + np.bincount(synthetic[drawn], minlength=3)
        assert counts[:2].tolist() == [12, 12] and counts[2] in (4, 5)  # all there is of a small class
        assert len(set(kept)) == len(kept) and len(set(drawn)) == len(drawn)
        assert usable[drawn].all()
    share = np.mean([np.mean(real[kept] == 1) * len(kept) for kept, _ in draws]) / 12
    assert share == pytest.approx(50 / 125, abs=0.06)
    assert any((one[0].tolist(), one[1].tolist()) != (draws[0][0].tolist(), draws[0][1].tolist()) for one in draws)


def test_diagen_fault_variants_of_no_weight_give_no_number() -> None:
    """It divides by the sum of an image's weights: all 0, and the chances are NaN. Ours keeps the real image there."""
    pool = mixing.Pool(np.array([0.0, 0.0, 1.0]), parents=np.array([0, 0, 2]), targets=np.array([0, 0, 1]))
    real = order()
    slots = mixing.mix("replace", real, pool, fraction=1.0, num_real=3, rng=np.random.default_rng(0))
    assert slots.is_synthetic.tolist() == (real == 2).tolist()
    assert (slots.index[~slots.is_synthetic] == real[~slots.is_synthetic]).all()


def test_every_class_comes_equally_often_and_its_images_in_whole_passes() -> None:
    labels = np.array([0] * 12 + [2] * 3)
    found = mixing.class_order(labels, 60, np.random.default_rng(3))
    assert np.bincount(labels[found]).tolist() == [30, 0, 30]
    assert np.bincount(found, minlength=15).tolist()[12:] == [10, 10, 10]
    assert set(np.bincount(found, minlength=15)[:12]) == {2, 3}
    assert (mixing.class_order(labels, 60, np.random.default_rng(3)) == found).all()


def test_every_batch_holds_its_share_of_every_class_real_and_synthetic() -> None:
    """Drawn by chance, as the released codes do, a batch of 20 may lack a class; that costs points with few images."""
    rng, real = np.random.default_rng(5), np.repeat([0, 1, 2, 3], [10, 10, 5, 5])
    targets = rng.permutation(np.repeat([0, 1, 2, 3], [40, 10, 30, 20]))
    pool = mixing.Pool(np.ones(100), np.full(100, -1), targets)
    order = mixing.real_order(real, 100 * 20, np.random.default_rng(1))
    slots = mixing.mix("pool", order, pool, fraction=0.5, num_real=30, rng=np.random.default_rng(2)).shaped(100, 20)
    for taken, index in zip(slots.is_synthetic, slots.index, strict=True):
        assert taken.sum() == 10
        drawn = np.bincount(targets[index[taken]], minlength=4)
        shown = np.bincount(real[index[~taken]], minlength=4)
        assert (abs(drawn - [4, 1, 3, 2]) <= 1.5).all() and (abs(shown - np.array([3.3, 3.3, 1.7, 1.7])) < 1.8).all()
    seen = np.bincount(slots.index[slots.is_synthetic], minlength=100)
    assert seen.min() >= 9 and seen.max() <= 11  # whole passes: 1,000 places for 100 images


def test_neighbours_are_of_no_fixed_pair_of_classes() -> None:
    """MixUp and CutMix mix each image with the one before it: classes in a fixed order would always meet the same one."""
    labels = np.repeat(np.arange(5), 4)
    found = labels[mixing.real_order(labels, 4000, np.random.default_rng(0))]
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (found[:-1], found[1:]), 1)
    others = pairs[~np.eye(5, dtype=bool)] / 4000
    assert others.min() > 0.02 and others.max() < 0.07
