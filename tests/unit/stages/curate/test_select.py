"""Decisions follow scores, with true reasons, and never take a class's last image for being off-class."""

from __future__ import annotations

import pytest

from variegate.stages.curate.select import Decision, drop_blank, drop_off_class, weigh_by_agreement

IDS = ["a", "b", "c", "d", "e", "f"]
TARGETS = dict(zip(IDS, [0, 0, 0, 0, 1, 1], strict=True))
AGREEMENT = dict(zip(IDS, [0.9, 0.4, 0.1, 0.05, 0.02, 0.01], strict=True))
ALL = [Decision(image_id) for image_id in IDS]


def dropped(decisions: list[Decision]) -> list[str]:
    return [decision.id for decision in decisions if decision.action == "drop"]


def test_blank_images_are_dropped_as_blank() -> None:
    decisions = drop_blank(ALL, {image_id: 0.0 if image_id in "bf" else 0.5 for image_id in IDS})
    assert dropped(decisions) == ["b", "f"]
    assert decisions[1] == Decision("b", "drop", 0.0, "blank")
    assert decisions[0] == Decision("a", "keep", 1.0, "")


def test_below_a_threshold_each_class_keeps_its_best() -> None:
    decisions = drop_off_class(ALL, AGREEMENT, TARGETS, below=0.3)
    assert dropped(decisions) == ["c", "d", "f"]
    assert {decision.reason for decision in decisions if decision.action == "drop"} == {"off-class"}


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, []), (0.5, ["c", "d", "f"]), (1.0, ["b", "c", "d", "f"])])
def test_a_share_of_each_class_is_dropped_lowest_first(fraction: float, expected: list[str]) -> None:
    assert dropped(drop_off_class(ALL, AGREEMENT, TARGETS, fraction=fraction)) == expected


def test_ties_are_broken_by_id_whatever_the_order() -> None:
    equal = dict.fromkeys(IDS, 0.5)
    one = dropped(drop_off_class(ALL, equal, TARGETS, fraction=0.5))
    two = dropped(drop_off_class(ALL[::-1], equal, TARGETS, fraction=0.5))
    assert sorted(one) == sorted(two) == ["a", "b", "e"]


def test_weights_are_diagens() -> None:
    decisions = weigh_by_agreement(ALL, AGREEMENT)
    assert [decision.weight for decision in decisions] == pytest.approx([1.0, 0.8, 0.2, 0.1, 0.04, 0.02])
    assert [decision.reason for decision in decisions[:2]] == ["", "off-class"]
    assert dropped(decisions) == []


def test_what_is_dropped_stays_dropped_for_its_first_reason() -> None:
    decisions = drop_blank(ALL, {image_id: float(image_id != "d") for image_id in IDS})
    decisions = weigh_by_agreement(drop_off_class(decisions, AGREEMENT, TARGETS, below=0.3), AGREEMENT)
    assert next(decision for decision in decisions if decision.id == "d") == Decision("d", "drop", 0.0, "blank")
