"""Ablations: what is tried, how the better half is kept, and what is said of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from variegate.ablation.halving import effect, halve, most_candidates, rungs, trainings
from variegate.ablation.settings import Candidate, by_drawing, grid, parse_axis, thinned
from variegate.ablation.words import as_markdown, sentence
from variegate.errors import RecipeError
from variegate.recipe_file import load_recipe
from variegate.statistics import two_way_interval

AXES = {"generate.strength": (0.3, 0.7), "train.mixing.fraction": (0.2, 0.5), "train.augment": ("none", "classic")}


def test_all_combinations_after_the_recipe_itself() -> None:
    found = grid(AXES)
    assert len(found) == 9 and found[0] == Candidate(())
    assert found[1].settings == (
        ("generate.strength", 0.3), ("train.mixing.fraction", 0.2), ("train.augment", "none"),
    )  # fmt: skip
    assert found[1].training == {"mixing": {"fraction": 0.2}, "augment": "none"}
    assert found[1].drawing == ("generate.strength=0.3",)


def test_settings_of_a_training_share_their_images() -> None:
    groups = by_drawing(grid(AXES))
    assert {drawing: len(members) for drawing, members in groups.items()} == {
        (): 1, ("generate.strength=0.3",): 4, ("generate.strength=0.7",): 4,
    }  # fmt: skip


def test_what_a_candidate_says_is_a_command_line_that_works() -> None:
    candidate = Candidate((("prompts.text", "a {name}, a photo"), ("generate.strength", [0.3, 0.7])))
    recipe = load_recipe("real-mix", candidate.drawing)
    assert recipe.prompts.text == "a {name}, a photo" and recipe.generate.strength == [0.3, 0.7]


@pytest.mark.parametrize("text", ["generate.strength", "generate.strength=0.5", "generate.strength=0.5,0.5", "=1,2"])
def test_one_value_is_no_choice(text: str) -> None:
    with pytest.raises(RecipeError, match="two values"):
        parse_axis(text)


def test_too_many_are_thinned_the_same_way_each_time_and_the_recipe_itself_stays() -> None:
    found = grid({"train.lr": tuple(range(1, 40))})
    chosen = thinned(found, 7, seed=3)
    assert chosen == thinned(found, 7, seed=3) != thinned(found, 7, seed=4)
    assert len(set(chosen)) == 7 and chosen[0] == found[0]


@pytest.mark.parametrize("count", [2, 3, 5, 8, 24])
def test_the_budget_is_what_is_spent(count: int) -> None:
    spent: dict[int, int] = {}

    def measure(places, _rung: int, seeds: int) -> list[np.ndarray]:  # noqa: ANN001
        for place in places:
            spent[place] = seeds
        return [np.full((seeds, 4), place % 2) for place in places]

    halve(count, measure)
    assert sum(spent.values()) + rungs(count)[-1].seeds + 2 * 3 == trainings(count, 3)
    assert most_candidates(trainings(count, 3), 3) == count


def test_a_planted_best_setting_is_found() -> None:
    """8 settings, one of them 10 points better: seeds scatter by 3 points, 200 validation images."""
    hits = 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        truth = np.full(8, 0.6)
        truth[5] = 0.7

        def measure(places, _rung: int, seeds: int, rng=rng, truth=truth) -> list[np.ndarray]:  # noqa: ANN001
            return [
                (rng.random((seeds, 200)) < truth[place] + rng.normal(0, 0.03, (seeds, 1))).astype(float)
                for place in places
            ]

        tried = halve(8, measure)
        hits += max(tried, key=lambda place: tried[place].rung) == 5
    assert hits >= 95


def test_what_matters_explains_the_differences() -> None:
    points = [dict(one.settings) for one in grid({"a": (1, 2), "b": (1, 2)})[1:]]
    scores = [0.5 + 0.2 * point["a"] for point in points]
    first = effect("a", [json.dumps(point["a"]) for point in points], scores)
    second = effect("b", [json.dumps(point["b"]) for point in points], scores)
    assert first.explained == pytest.approx(1.0) and second.explained == pytest.approx(0.0)
    assert first.means == pytest.approx({"1": 0.7, "2": 0.9}) and first.counts == {"1": 2, "2": 2}


@pytest.mark.parametrize(
    ("gain", "said"), [(0.3, "Best of 9"), (0.0, "Don't, as far as"), (-0.3, "Don't: the best of 9")]
)
def test_only_a_gain_that_is_shown_speaks_for_drawing(gain: float, said: str) -> None:
    rng = np.random.default_rng(0)
    real = (rng.random((3, 200)) < 0.5).astype(float)
    other = (rng.random((3, 200)) < 0.5 + gain).astype(float)
    closing = {"images": 200, "winner": float(other.mean()), "real": float(real.mean())}
    text = sentence(grid(AXES)[3], 9, closing, two_way_interval(other - real))
    assert text.startswith(said) and "generate.strength=0.3" in text


def test_the_table_has_every_setting_the_best_first() -> None:
    entries = [
        {"settings": {"a": 1}, "rung": 1, "seeds": 1, "val_accuracy": 0.9},
        {"settings": {}, "rung": 3, "seeds": 2, "val_accuracy": 0.6},
    ]
    text = as_markdown({"verdict": "So.", "effects": [], "candidates": entries})
    assert text.index("the recipe as it is | 2 | 60.0 %") < text.index("`a=1` | 1 | 90.0 %")
