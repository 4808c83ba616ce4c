"""Arms in a recipe: names, images, ways of learning, and what adds to a run instead of changing it."""

from __future__ import annotations

import pytest

from variegate.api import extends
from variegate.errors import RecipeError
from variegate.recipe import Recipe
from variegate.recipe_file import dump_recipe, load_recipe, parse_yaml

CUT = {"name": "real+cutmix", "images": "real", "train": {"mix": "cutmix", "label": {"smoothing": 0.2}}}


def with_arms(*arms: object, seeds: int = 1) -> Recipe:
    return Recipe.model_validate({"evaluate": {"arms": list(arms), "seeds": seeds}})


def test_an_arms_keys_lie_over_those_of_train() -> None:
    recipe = with_arms("real", CUT)
    plain, cut = recipe.evaluate.arm_sections
    assert recipe.train_of(plain) == recipe.train
    changed = recipe.train_of(cut)
    assert (changed.mix, changed.label.smoothing, changed.label.gamma) == ("cutmix", 0.2, recipe.train.label.gamma)
    assert changed.model_copy(update={"mix": "none", "label": recipe.train.label}) == recipe.train


def test_keys_of_trains_own_mix_and_loss_do_not_reach_arms_with_others() -> None:
    train = {"mix": "cutmix", "mix_probability": 0.5, "mix_alpha": 2, "loss": "ldam", "ldam": {"scale": 20}}
    other = {"name": "fractal", "images": "real", "train": {"mix": "fractal-mixup", "loss": "ce"}}
    recipe = Recipe.model_validate({"train": train, "evaluate": {"arms": ["real+synthetic", CUT, other]}})
    same, fractal = (recipe.train_of(arm) for arm in recipe.evaluate.arm_sections[1:])
    assert (same.mix_probability, same.mix_alpha, same.ldam.scale) == (0.5, 2, 20)
    assert (fractal.mix_probability, fractal.mix_alpha, fractal.ldam.scale) == (1.0, None, 30.0)


def test_a_recipe_with_arms_is_written_and_read_again() -> None:
    recipe = with_arms("real", CUT, {"name": "copies", "images": "real", "copies": 3})
    assert Recipe.model_validate(parse_yaml(dump_recipe(recipe), "recipe.yaml")) == recipe


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("reel", "did you mean 'real'?"),
        ("{name: a, images: real, train: {augmnt: none}}", "evaluate.arms.0.train.augmnt: unknown key — did you mean 'augment'?"),
        ("{name: a, images: real, train: {mixing: {fractoin: 1}}}", "did you mean 'fraction'?"),
        ("{name: a, images: real, train: {steps: 9}}", "train.steps is the same for every arm"),
        ("{name: a, images: real, train: {pools: [x]}}", "train.pools is the same for every arm"),
        ("{name: a, images: real+synthetic, copies: 2}", "copies are of real images"),
        ("{name: a, imags: real}", "did you mean 'images'?"),
        ("{name: ../up, images: real}", "should match pattern"),
        ("{name: a, images: real, train: {transport: true}}", "transport is a part of puzzle-mix"),
        ("{name: a, images: synthetic, train: {mix: cmo}}", "so the arm a would not be of synthetic images alone"),
    ],
)  # fmt: skip
def test_what_an_arm_may_not_say(arm: str, words: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe("variegate", [f"evaluate.arms=[{arm}]"])
    assert words in str(raised.value)


def test_arms_that_would_share_a_folder_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        with_arms({"name": "a b", "images": "real"}, {"name": "a+b", "images": "real"})


def test_an_arm_with_replacement_cannot_learn_from_text_alone() -> None:
    arm = "{name: a, images: real+synthetic, train: {mixing: {policy: replace}}}"
    with pytest.raises(RecipeError, match="draws from text alone"):
        load_recipe("real-gen", [f"evaluate.arms=[{arm}]"])


def test_more_arms_and_seeds_extend_a_run_and_nothing_else_does() -> None:
    old = with_arms("real", CUT, seeds=2)
    assert extends(old, with_arms(CUT, "real", "synthetic", seeds=3))
    assert not extends(old, with_arms("real", seeds=2))
    assert not extends(old, with_arms("real", CUT, seeds=1))
    assert not extends(old, with_arms("real", {**CUT, "train": {"mix": "mixup"}}, seeds=2))
    assert not extends(old, with_arms("real", CUT, seeds=2).model_copy(update={"seed": 1}))
