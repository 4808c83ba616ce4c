"""Blank images are found and nothing else is; the judge knows what it knows."""

from __future__ import annotations

import numpy as np
import pytest

from variegate.judge import Judge, class_agreement, judge_of_logits, train_judge
from variegate.stages.curate.scores import BLANK_BELOW, blank_scores

EDGE = 64
ROWS, COLUMNS = np.mgrid[0:EDGE, 0:EDGE] / EDGE


def image(kind: str) -> np.ndarray:
    """float [64, 64, 3] in levels."""
    rng = np.random.default_rng(0)
    grey = np.full((EDGE, EDGE, 3), 128.0)
    if kind in ("black", "white"):
        return grey * (0 if kind == "black" else 255 / 128)
    if kind == "one colour":
        return grey * [0.2, 1.5, 0.7]
    if kind == "flat with JPEG noise":
        return grey + rng.integers(-2, 3, grey.shape)
    if kind == "black with a dead pixel":
        grey[:] = 0
        grey[10, 10:14] = 255
        return grey
    if kind == "noise":
        return rng.integers(0, 256, grey.shape)
    if kind == "fog":
        return 200 + 9 * np.sin(7 * ROWS + 3 * COLUMNS)[..., None] + rng.normal(0, 1.5, grey.shape)
    if kind == "night sky":
        return 5 + 25 * (rng.random(grey.shape[:2]) < 0.02)[..., None] + 8 * ROWS[..., None] + np.zeros(3)
    if kind == "white with an object":
        return np.where((abs(ROWS - 0.5) < 0.1) & (abs(COLUMNS - 0.5) < 0.1), 90, 255)[..., None] + np.zeros(3)
    assert kind == "one channel only"
    return grey * [1, 1, 0] + 100 * ROWS[..., None] * [0, 0, 1]


@pytest.mark.parametrize("kind", ["black", "white", "one colour", "flat with JPEG noise", "black with a dead pixel"])
def test_nothing_to_see_is_blank(kind: str) -> None:
    assert blank_scores(image(kind)[None].clip(0, 255).astype(np.uint8))[0] < BLANK_BELOW


@pytest.mark.parametrize("kind", ["noise", "fog", "night sky", "white with an object", "one channel only"])
def test_faint_images_are_not_blank(kind: str) -> None:
    assert blank_scores(image(kind)[None].clip(0, 255).astype(np.uint8))[0] > BLANK_BELOW


def test_black_is_blank_and_a_image_with_white_is_not() -> None:
    """DiffuseMix's is_black_image looked at histogram bin 255: white was black, and black passed."""
    black, bright = np.zeros((EDGE, EDGE, 3)), 255 * (COLUMNS > 0.5)[..., None] + np.zeros(3)
    scores = blank_scores(np.stack([black, bright]).astype(np.uint8))
    assert scores.tolist() == [0.0, 1.0]


def test_scores_of_no_images_and_of_wrong_shapes() -> None:
    assert blank_scores(np.empty((0, 8, 8, 3), np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match="uint8"):
        blank_scores(np.zeros((1, 8, 8, 3)))


def clusters(
    per_class: int, gap: float, seed: int = 0, num_classes: int = 4
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features, labels and groups of images and their mirror images."""
    rng, centres = np.random.default_rng(seed), np.random.default_rng(9).normal(0, 1, (num_classes, 20))
    labels = np.repeat(np.arange(num_classes), per_class)
    features = gap * centres[labels] + rng.normal(0, 1, (len(labels), 20))
    flipped = features + rng.normal(0, 0.1, features.shape)
    names = [f"image {k}" for k in range(len(labels))]
    return np.concatenate([features, flipped]), np.tile(labels, 2), names * 2


def test_a_good_judge_agrees_with_the_right_class_only() -> None:
    judge = train_judge(*clusters(6, 1.5), seed=1)
    assert judge is not None
    assert judge.held_out_accuracy > 0.8
    assert not judge.is_weak
    features, labels, _ = clusters(20, 1.5, seed=5)
    right, wrong = class_agreement(judge, features, labels), class_agreement(judge, features, (labels + 1) % 4)
    assert right.mean() > 0.7
    assert wrong.mean() < 0.2
    total = sum(class_agreement(judge, features, np.full(len(labels), label)) for label in range(4))
    assert total == pytest.approx(np.ones(len(labels)), abs=1e-5)


def test_probabilities_are_calibrated() -> None:
    judge = train_judge(*clusters(12, 0.6), seed=1)
    assert judge is not None
    features, labels, _ = clusters(300, 0.6, seed=6)
    everything = np.stack([class_agreement(judge, features, np.full(len(labels), label)) for label in range(4)], axis=1)
    confidence, accuracy = everything.max(axis=1).mean(), (everything.argmax(axis=1) == labels).mean()
    assert confidence == pytest.approx(accuracy, abs=0.12)


def test_a_judge_that_guesses_is_weak() -> None:
    judge = train_judge(*clusters(6, 0.0), seed=1)
    assert judge is not None
    assert judge.is_weak
    assert judge.chance == 0.25


@pytest.mark.parametrize(
    ("accuracy", "num_tested", "chance", "is_weak"),
    [
        (0.20, 50, 0.10, True),  # twice chance on 50 images: 11 % in truth is possible
        (0.20, 2000, 0.10, False),
        (0.38, 50, 0.10, False),
        (0.80, 20, 0.50, True),
        (1.00, 12, 0.70, True),  # a commonest class of 70 %: 1.5 times that would be out of anyone's reach
        (1.00, 60, 0.70, False),
    ],
)
def test_a_judge_has_to_be_clearly_better_than_chance(accuracy, num_tested, chance, is_weak) -> None:
    judge = Judge(None, 1.0, np.arange(2), accuracy, num_tested, chance)  # type: ignore[arg-type]
    assert judge.is_weak == is_weak


def test_the_temperature_mends_a_judge_that_is_too_sure() -> None:
    """A classifier that is right in seven of ten and says 99.97 % each time: off by 0.3, and by nothing once calibrated."""
    labels = np.arange(60) % 2
    said = np.where(np.arange(60) % 10 < 7, labels, 1 - labels)
    logits = 8.0 * np.eye(2)[said]
    judge = judge_of_logits(logits, labels, list(map(str, range(60))))
    assert judge.ece_before == pytest.approx(0.3, abs=0.01)
    assert judge.ece_after == pytest.approx(0.0, abs=0.01)


def test_mirror_images_do_not_flatter_the_judge() -> None:
    """An image's mirror image among what was learned would make pure noise look learnable."""
    features, labels, groups = clusters(6, 0.0)
    honest, fooled = (
        train_judge(features, labels, groups, seed=1),
        train_judge(features, labels, list(map(str, range(48))), seed=1),
    )
    assert honest is not None
    assert fooled is not None
    assert fooled.held_out_accuracy > honest.held_out_accuracy + 0.2


def test_one_image_a_class_is_too_few_to_test_a_judge() -> None:
    assert train_judge(*clusters(1, 2.0), seed=1) is None


def test_two_classes_work_too() -> None:
    judge = train_judge(*clusters(5, 1.5, num_classes=2), seed=1)
    assert judge is not None
    features, labels, _ = clusters(5, 1.5, num_classes=2, seed=3)
    assert class_agreement(judge, features, labels).mean() > 0.7


def test_equal_seeds_give_equal_judges() -> None:
    features, labels, groups = clusters(6, 0.8)
    one, two = train_judge(features, labels, groups, seed=4), train_judge(features, labels, groups, seed=4)
    assert one is not None
    assert two is not None
    assert (class_agreement(one, features, labels) == class_agreement(two, features, labels)).all()
