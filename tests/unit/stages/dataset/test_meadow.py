"""The meadow as its users meet it: the same picture for the same seed, nested shots, honest splits, named habitats."""

from __future__ import annotations

import colorsys
from dataclasses import replace

import numpy as np
import pytest

from variegate.stages.dataset.butterflies import HABITAT_PAINTERS, draw_butterfly, sample_pose
from variegate.stages.dataset.meadow import (
    HABITAT_PHRASES,
    HABITATS,
    UNCOMMON_TEST,
    is_starter_species,
    make_meadow,
    mark_phrases,
    meadow_names,
    meadow_species,
    sample_starter_species,
)

SMALL = {"n_species": 4, "n_per_species": 3, "size_px": 32}


def test_same_arguments_draw_the_same_pictures():
    first, again = make_meadow(**SMALL, seed=3), make_meadow(**SMALL, seed=3)
    assert np.array_equal(first.images, again.images)
    assert first.captions == again.captions


def test_arrays_and_texts_agree_in_length_and_type():
    meadow = make_meadow(**SMALL)
    assert meadow.images.shape == (12, 32, 32, 3)
    assert meadow.images.dtype == np.uint8
    assert meadow.labels.dtype == np.int64
    assert len(meadow.captions) == len(meadow.habitats) == 12
    assert len(meadow.class_names) == len(meadow.descriptions) == len(set(meadow.class_names)) == 4
    assert all(len(name.split()) == 2 for name in meadow.class_names)


def test_fewer_shots_are_a_subset_of_more():
    few, many = make_meadow(4, 2, 32), make_meadow(4, 5, 32)
    for label in range(4):
        assert np.array_equal(few.images[few.labels == label], many.images[many.labels == label][:2])


def test_more_species_leave_the_first_ones_alone():
    few, many = make_meadow(3, 2, 32), make_meadow(9, 2, 32)
    assert many.class_names[:3] == few.class_names
    assert np.array_equal(few.images, many.images[many.labels < 3])


def test_draw_changes_train_pictures_but_neither_species_nor_test():
    assert not np.array_equal(make_meadow(**SMALL, draw=0).images, make_meadow(**SMALL, draw=1).images)
    first, second = make_meadow(**SMALL, draw=0, split="test"), make_meadow(**SMALL, draw=1, split="test")
    assert np.array_equal(first.images, second.images)
    assert first.class_names == second.class_names


def test_splits_share_no_picture():
    seen = set()
    for split in ("train", "val", "test"):
        pictures = {image.tobytes() for image in make_meadow(**SMALL, split=split).images}
        assert len(pictures) == 12
        assert not pictures & seen
        seen |= pictures


def test_one_scene_at_every_size():
    apart = []
    for seed in range(5):
        small, large = (make_meadow(2, 1, size_px, seed=seed).images.astype(float) for size_px in (32, 128))
        apart.append(np.abs(large.reshape(2, 32, 4, 32, 4, 3).mean((2, 4)) - small).mean())
    assert np.mean(apart) < 6  # grey levels: sensor noise and filtering only, more on fine grass than on sand


def test_starter_species_never_show_up_in_a_meadow():
    meadows = {one for seed in range(10) for one in meadow_species(40, seed)}
    assert not any(map(is_starter_species, meadows))
    rng = np.random.default_rng(0)
    starters = {sample_starter_species(rng) for _ in range(500)}
    assert all(map(is_starter_species, starters))
    assert not meadows & starters


def test_species_are_distinct_and_share_a_genus_with_another():
    species = meadow_species(30, seed=5)
    assert len(set(species)) == 30
    genera = [one.genus for one in species]
    assert 4 <= len(set(genera)) <= 10
    assert all(genera.count(genus) > 1 for genus in set(genera[:-6]))


def test_one_genus_word_for_one_genus():
    words = [name.split()[0] for name in meadow_names(30, 5)]
    genera = [one.genus for one in meadow_species(30, 5)]
    assert len(set(words)) == len(set(genera)) == len(set(zip(words, genera, strict=True)))


def test_names_stay_unique_for_many_species():
    assert len(set(meadow_names(400, 0))) == 400


@pytest.mark.parametrize(("bias", "low", "high"), [(1.0, 1.0, 1.0), (0.8, 0.7, 0.95), (0.0, 0.0, 0.3)])
def test_habitat_bias_ties_train_pictures_to_their_own_habitat(bias, low, high):
    own = make_meadow(8, 1, 32, habitat_bias=1.0).habitats
    meadow = make_meadow(8, 15, 32, habitat_bias=bias)
    share = np.mean([habitat == own[label] for habitat, label in zip(meadow.habitats, meadow.labels, strict=True)])
    assert low <= share <= high
    assert len(set(own)) == 8  # eight species, eight habitats


def test_test_split_is_never_biased():
    biased = make_meadow(**SMALL, habitat_bias=1.0, split="test")
    assert np.array_equal(biased.images, make_meadow(**SMALL, split="test").images)


def test_imbalance_makes_a_long_tail_with_nobody_left_out():
    counts = np.bincount(make_meadow(5, 16, 32, imbalance=16).labels)
    assert counts.tolist() == [16, 8, 4, 2, 1]
    assert np.bincount(make_meadow(3, 2, 32, imbalance=100).labels).tolist()[-1] == 1


def test_captions_say_what_is_drawn():
    meadow = make_meadow(6, 2, 32)
    for label, habitat, caption in zip(meadow.labels, meadow.habitats, meadow.captions, strict=True):
        assert caption == f"{meadow.descriptions[label]}, {HABITAT_PHRASES[habitat]}"
        assert all(phrase in caption for phrase in mark_phrases(meadow.species[label]))


# Hue in degrees where the habitat has one; only saturation where it is grey.
HUES = {
    "grass": (80, 140),
    "leaves": (80, 165),
    "sand": (25, 50),
    "sky": (195, 230),
    "petals": (310, 350),
    "water": (170, 205),
}


@pytest.mark.parametrize("habitat", HABITATS)
def test_habitats_have_their_colours(habitat):
    rng = np.random.default_rng(1)
    species = sample_starter_species(rng)
    pictures = np.stack([draw_butterfly(species, sample_pose(rng, habitat), rng, 48)[0] for _ in range(8)])
    corners = pictures[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3) / 255
    hue, saturation, _ = colorsys.rgb_to_hsv(*np.median(corners, axis=0))
    if habitat in HUES:
        low, high = HUES[habitat]
        assert low <= 360 * hue <= high
    assert (saturation < 0.12) == (habitat == "stone")


def test_every_habitat_is_used():
    assert set(make_meadow(8, 20, 32).habitats) == set(HABITAT_PAINTERS)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("n_species", 0),
        ("n_species", 2.5),
        ("n_per_species", 0),
        ("size_px", 16),
        ("size_px", 512),
        ("habitat_bias", 1.1),
        ("imbalance", 0.5),
        ("seed", -1),
        ("draw", -1),
        ("split", "dev"),
    ],
)
def test_bad_arguments_are_named(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value!r}, should be"):
        make_meadow(**{argument: value})


def test_all_bad_arguments_are_named_at_once():
    with pytest.raises(ValueError, match=r"size_px.*split"):
        make_meadow(size_px=1, split="dev")


def test_the_uncommon_test_set_shows_species_outside_their_own_habitat_and_nothing_else_moves():
    options = {"n_species": 10, "n_per_species": 12, "size_px": 32, "habitat_bias": 1.0}
    train, uncommon = make_meadow(**options), make_meadow(**options, split=UNCOMMON_TEST)
    pairs = [set(zip(meadow.labels.tolist(), meadow.habitats, strict=True)) for meadow in (train, uncommon)]
    assert len(pairs[0]) == 10, "every species has one habitat in training"
    assert not pairs[0] & pairs[1]
    assert set(uncommon.habitats) == set(HABITATS)
    assert uncommon.class_names == train.class_names


def test_a_mask_is_the_butterfly_and_nothing_else() -> None:
    """Marks of another species of the genus change pixels inside the mask only: not the habitat, not the shadow."""
    meadow = make_meadow(n_species=2, n_per_species=6, size_px=48)
    assert meadow.masks.shape == (12, 48, 48) and meadow.masks.dtype == bool
    assert all(0.05 < mask.mean() < 0.7 for mask in meadow.masks)
    plain = meadow.species[0]
    marked = replace(plain, margin_colour="white", margin_width="wide", band_colour="pink", band_place="outer")
    for seed in range(6):
        drawn = []
        for species in (plain, marked):
            rng = np.random.default_rng(seed)
            drawn.append(draw_butterfly(species, sample_pose(rng, "sand"), rng, 48))
        (one, mask), (two, same) = drawn
        changed = np.abs(one.astype(int) - two).max(axis=2) > 40  # the rim of the mask is half wing, half habitat
        assert (mask == same).all()
        assert changed.sum() > 0.1 * mask.sum()
        assert (changed & ~mask).sum() <= 0.03 * changed.sum()
