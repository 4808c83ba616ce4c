"""Which classes are drawn as others, from numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np

from variegate.stages.train.class_agreement import (
    MAX_IMAGES,
    chosen_images,
    class_agreement,
    is_drawn_as_another,
    warning,
)

OWL, LYNX, HARE = range(3)


def opinions(*named: int) -> np.ndarray:
    return np.eye(3)[list(named)]


def test_shares_are_of_each_class_alone_and_the_other_name_is_the_commonest() -> None:
    drawn = opinions(OWL, LYNX, LYNX, HARE, LYNX)
    entries = class_agreement(drawn, np.array([OWL, OWL, OWL, OWL, LYNX]), opinions(OWL, LYNX), np.array([OWL, OWL]))
    assert entries[OWL] == {
        "images": 4, "agreement": 0.25, "taken_for": LYNX, "taken": 0.5, "held_out": 2, "real_agreement": 0.5, "real_taken": 0.5
    }  # fmt: skip
    assert (entries[LYNX]["agreement"], entries[LYNX]["taken_for"], entries[LYNX]["real_agreement"]) == (
        1.0,
        None,
        None,
    )
    assert (entries[HARE]["images"], entries[HARE]["agreement"]) == (0, None)


def test_a_class_drawn_as_another_is_told_from_one_that_is_hard_to_tell_at_all() -> None:
    wrong, targets, labels = opinions(*[OWL] * 3, *[LYNX] * 17), np.zeros(20, int), np.zeros(10, int)
    known, mixed_up = opinions(*[OWL] * 9, LYNX), opinions(*[OWL] * 4, *[LYNX] * 6)
    clear = class_agreement(wrong, targets, known, labels)
    assert [is_drawn_as_another(entry) for entry in clear] == [True, False, False]
    assert warning(clear, ["owl", "lynx", "hare"]).endswith(
        ": owl as lynx (85 % of 20; as itself 15 %, where real images are at 90 %)"
    )
    half = class_agreement(opinions(*[OWL] * 9, *[LYNX] * 10, HARE), targets, known, labels)
    assert half[OWL]["taken"] == 0.5 > half[OWL]["agreement"] and warning(half, ["owl", "lynx", "hare"]) == ""
    for few in (
        class_agreement(wrong, targets, mixed_up, labels),  # the real ones are taken for it as well
        class_agreement(wrong[-2:], targets[:2], known, labels),  # two images may be chance
        class_agreement(wrong, targets, known[:0], labels[:0]),  # nothing to compare with
    ):
        assert warning(few, ["owl", "lynx", "hare"]) == ""


def test_of_each_class_the_same_number_is_looked_at() -> None:
    targets = np.array([OWL] * 100 + [LYNX] * 5)
    usable = targets + np.arange(105) != 104  # all but one lynx
    chosen = chosen_images(targets, usable, np.random.default_rng(0))
    assert np.bincount(targets[chosen]).tolist() == [MAX_IMAGES, 4] and sorted(set(chosen)) == chosen.tolist()
    assert chosen_images(targets, np.zeros(105, bool), np.random.default_rng(0)).tolist() == []
