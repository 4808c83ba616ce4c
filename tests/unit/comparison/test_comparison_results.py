"""Known truths of a comparison's statistics: alike is alike, a planted gain is found, and the words say which."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from comparing import COST, ROWS, layout, outcomes

from variegate.comparison.drawn_classes import DrawnClasses
from variegate.comparison.outcomes import drawn_as_others
from variegate.comparison.plan import DUPLICATED, REAL
from variegate.comparison.results import compare_methods, estimate, summarise

METHODS = ("a", "b", "c", "d")


def test_alike_methods_come_out_alike_in_at_least_93_of_100_comparisons() -> None:
    """Four methods that are all as good as real images: one false gain among them would spoil the whole comparison."""
    rng = np.random.default_rng(0)
    alike = 0
    for _ in range(100):
        found = compare_methods(outcomes(rng, dict.fromkeys((REAL, *METHODS), 0.0)), REAL, METHODS)
        alike += all(entry["selected"]["verdict"].startswith("no difference seen") for entry in found.values())
    assert alike >= 93


@pytest.mark.parametrize("draws", [2, 3, 10])
def test_one_method_alike_is_called_different_about_5_times_in_100(draws: int) -> None:
    rng = np.random.default_rng(draws)
    found = [
        compare_methods(outcomes(rng, {REAL: 0.0, "a": 0.0}, draws), REAL, ["a"])["a"]["selected"] for _ in range(150)
    ]
    wrong = np.mean([not entry["verdict"].startswith("no difference") for entry in found])
    assert wrong <= 0.1


def test_a_planted_gain_of_5_points_is_found() -> None:
    rng = np.random.default_rng(1)
    gains = {REAL: 0.0, "a": 0.185, "b": 0.0}  # 0.185 moves 5 of 100 images over the edge
    found = [compare_methods(outcomes(rng, gains, 10), REAL, ["a", "b"]) for _ in range(40)]
    assert np.mean([one["a"]["selected"]["difference"] for one in found]) == pytest.approx(0.05, abs=0.01)
    assert np.mean([one["a"]["selected"]["verdict"].startswith("helps") for one in found]) > 0.75
    assert np.mean([one["b"]["selected"]["verdict"].startswith("no difference") for one in found]) > 0.9


def test_seeds_of_a_draw_are_no_draws() -> None:
    """Ten seeds of two draws that disagree: an interval over twenty runs would be far too narrow."""
    draws = [np.zeros((10, 50)), np.ones((10, 50))]
    assert estimate(draws, True).num == 2
    assert estimate(draws, True).interval().is_zero_inside


def test_draws_that_agree_to_the_image_still_have_a_width() -> None:
    gap = np.zeros((1, 40))
    gap[0, 0] = 1.0
    for same_images in (True, False):
        found = estimate([gap, gap], same_images).interval()
        assert found.low < found.mean < found.high


def summary(gains: dict[str, float], draws: int = 8) -> dict:
    rng = np.random.default_rng(4)
    return summarise(layout(*ROWS), outcomes(rng, gains, draws), "real+cutmix", draws)


def test_the_answer_is_willing_to_say_that_classic_augmentation_is_enough() -> None:
    found = summary({REAL: 0.0, "real+cutmix": 0.6, DUPLICATED: 0.0, "mine": 0.6})
    assert found["verdict"].startswith("Classic augmentation is enough here: real+cutmix gains +")
    assert (
        "No recipe was seen to beat the best classic augmentation (real+cutmix); could have seen about"
        in found["verdict"]
    )


def test_the_answer_names_the_recipe_that_beats_the_best_classic_augmentation() -> None:
    found = summary({REAL: 0.0, "real+cutmix": 0.2, DUPLICATED: 0.0, "mine": 0.8})
    assert found["verdict"].startswith("mine beats the best classic augmentation (real+cutmix): +")
    assert "8 draws)" in found["verdict"]


def test_the_answer_names_what_only_the_correction_leaves_open() -> None:
    """One draw more would have told: a gain of the size is not passed over in silence, and not claimed either."""
    rows = [(REAL, "real"), *((f"recipe {k}", "recipe") for k in range(12))]
    gains = {REAL: 0.0} | {f"recipe {k}": 0.0 for k in range(12)} | {"recipe 7": 0.35}
    found = summarise(layout(*rows), outcomes(np.random.default_rng(4), gains, 4), REAL, 4)
    gain = next(m for m in found["methods"] if m["method"] == "recipe 7")["against"][0]["selected"]
    assert gain["p"] < 0.05 < gain["p_holm"]
    assert found["verdict"].startswith("No recipe was seen to beat real images alone; recipe 7 comes nearest: +")
    assert f"correction for 12 methods (p {gain['p']:.3f}" in found["verdict"]


def test_one_draw_says_what_it_does_not_cover() -> None:
    found = summary({REAL: 0.0, "real+cutmix": 0.0, DUPLICATED: 0.0, "mine": 0.0}, draws=1)
    assert found["verdict"].endswith("One draw says nothing of other training images.")
    mine = found["methods"][3]["against"][0]["selected"]
    assert mine["bootstrap"] is None and "2 seeds)" in mine["words"]


def test_every_baseline_is_there_and_only_what_makes_images_meets_the_harder_ones() -> None:
    found = summary({REAL: 0.0, "real+cutmix": 0.0, DUPLICATED: 0.0, "mine": 0.3})
    baselines = {m["method"]: [entry["baseline"] for entry in m["against"]] for m in found["methods"]}
    assert baselines == {
        REAL: [], "real+cutmix": [REAL], DUPLICATED: [REAL], "mine": [REAL, DUPLICATED, "real+cutmix"],
    }  # fmt: skip
    mine = found["methods"][3]
    assert mine["against"][0]["selected"]["tests"] == 3
    assert len(mine["against"][0]["last"]["draws"]) == 8
    assert mine["cost"]["total_seconds"] == 6.0
    gain = mine["against"][0]["selected"]["difference"]
    assert mine["cost"]["gain_per_minute"] == pytest.approx(gain * 60 / 4)


def test_cost_is_summed_where_it_is_known_and_null_where_it_is_not() -> None:
    found = outcomes(np.random.default_rng(5), {REAL: 0.0, "real+cutmix": 0.0, DUPLICATED: 0.0, "mine": 0.3}, 2)

    def cost(**changes: object) -> dict:
        found["mine"][1] = replace(found["mine"][1], cost=COST | changes)
        return summarise(layout(*ROWS), found, "real+cutmix", 2)["methods"][3]["cost"]

    whole = cost(memory_mb={"train": 700.0, "draw": None})
    assert whole["energy_j"] == 70.0 and whole["gain_per_minute"] is not None
    assert whole["memory_mb"] == {"train": 700.0, "draw": 900.0} and whole["peak_memory_mb"] == 900.0
    assert cost(energy_j={"train": 20.0, "draw": None})["energy_j"] is None
    elsewhere = cost(made_elsewhere=True)
    assert elsewhere["made_elsewhere"] and elsewhere["gain_per_minute"] is None, "no gain a minute of nothing"


def test_a_gain_that_only_the_classes_with_few_images_have_is_seen_there() -> None:
    rng = np.random.default_rng(6)
    found = outcomes(rng, {REAL: 0.0, "real+cutmix": 0.0, DUPLICATED: 0.0, "mine": 0.0}, 4)
    for name, draws in found.items():
        few = [0.3 + (0.2 + 0.01 * k if name == "mine" else 0.0) for k in range(4)]
        found[name] = [replace(one, parts={"few-shot": few[k]}) for k, one in enumerate(draws)]
    found["mine"][0] = replace(found["mine"][0], parts=found["mine"][0].parts | {"tundra": 0.5})  # not in every draw
    methods = {one["method"]: one for one in summarise(layout(*ROWS), found, "real+cutmix", 4)["methods"]}
    (part,) = methods["mine"]["parts"]
    assert part["part"] == "few-shot" and part["accuracy"] == pytest.approx(0.515)
    assert part["gain"]["draws"] == pytest.approx([0.2, 0.21, 0.22, 0.23])
    assert 0.15 < part["gain"]["low"] < 0.215 < part["gain"]["high"] < 0.28
    assert methods["real+cutmix"]["parts"][0]["gain"]["difference"] == 0.0


def test_parts_of_one_draw_have_no_interval() -> None:
    found = outcomes(np.random.default_rng(7), {REAL: 0.0, "real+cutmix": 0.0, DUPLICATED: 0.0, "mine": 0.0}, 1)
    found = {name: [replace(draws[0], parts={"worst cell": 0.25})] for name, draws in found.items()}
    part = summarise(layout(*ROWS), found, "real+cutmix", 1)["methods"][3]["parts"][0]
    assert (part["accuracy"], part["low"], part["gain"]["high"]) == (0.25, None, None)


def test_parts_that_are_the_same_in_every_draw_have_no_interval() -> None:
    from variegate.comparison.results import _spread

    assert _spread([0.0, 0.0, 0.0]) == {"mean": 0.0, "low": None, "high": None}
    some = _spread([0.0, 0.2])
    assert some["low"] is not None and some["low"] < some["mean"]


def test_classes_drawn_as_others_are_said_in_one_line_a_method_with_the_draws() -> None:
    entry = {"images": 40, "held_out": 100, "real_taken": 0.0, "real_agreement": 0.9}
    swapped = entry | {"taken_for": 1, "taken": 0.9, "agreement": 0.1}
    milder = entry | {"taken_for": 1, "taken": 0.8, "agreement": 0.2, "real_agreement": 0.7}
    itself = entry | {"taken_for": 0, "taken": 0.0, "agreement": 1.0}
    found = outcomes(np.random.default_rng(0), {"a": 0.0}, 3)["a"]
    draws = [DrawnClasses((first, itself), ("lynx", "puma")) for first in (swapped, itself | {"taken_for": 1}, milder)]
    told = drawn_as_others(
        "a", [replace(one, drawn_classes=classes) for one, classes in zip(found, draws, strict=True)]
    )
    assert told == (
        "a: classifiers of the real images alone see classes drawn as others: lynx as puma in draws 1, 3 "
        "(80 to 90 % of its images; as itself 10 to 20 %, where real images are at 70 to 90 %)"
    )
    assert drawn_as_others("a", found) == "", "nobody was asked"
