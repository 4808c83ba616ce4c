"""An ablation's folder, its baseline and its last word, before and after the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from variegate.ablation import study
from variegate.ablation.settings import Candidate
from variegate.errors import RecipeError, RunFolderError
from variegate.progress import QuietReporter
from variegate.recipe_file import load_recipe


def asked(root: Path, recipe: str = "real-mix", *overrides: str) -> study.Study:
    return study.Study(None, recipe, overrides, root, 1, QuietReporter)


def test_real_images_alone_learn_as_the_winner_does(tmp_path: Path) -> None:
    winner = Candidate((("train.augment", "trivialaugment"), ("train.mixing.fraction", 0.6), ("train.label.gamma", 1)))
    recipe = asked(tmp_path).training([winner], 2, with_real=True)
    real, best = recipe.evaluate.arm_sections
    assert (real.name, real.images) == ("real", "real")
    assert recipe.train_of(real).augment == recipe.train_of(best).augment == "trivialaugment"
    assert recipe.train_of(best).mixing.fraction == 0.6


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 3\n")
    with pytest.raises(RunFolderError, match="is not empty and no ablation"):
        study.ablate(None, "real-mix", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    (tmp_path / study.ASKED).write_text(json.dumps(asked(tmp_path, "real-mix").asked))
    with pytest.raises(RunFolderError, match="an ablation of real-mix with other settings"):
        study.ablate(None, "real-guidance", tmp_path)


def test_where_drawing_does_not_help_the_recipe_that_is_left_has_the_same_data_and_classifier(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "seed: 7\ndataset: {shots: 3, size_px: 32}\ngenerate: {method: real-mix}\n"
        "train: {steps: 50, augment: randaugment, pools: [elsewhere]}\n"
    )
    left = study._real_alone(asked(tmp_path, str(mine)))
    assert (left.generate.method, left.train.pools, left.seed) == ("none", [], 7)
    assert (left.dataset.shots, left.dataset.size_px) == (3, 32)
    assert (left.train.steps, left.train.augment) == (50, "randaugment")
    assert [arm.name for arm in left.evaluate.arm_sections] == ["real"]


@pytest.mark.parametrize(
    ("recipe", "key"), [("diff-gen", "train.mixing.fraction"), ("diffusemix", "generate.strength")]
)
def test_only_what_a_recipe_uses_is_tried(recipe: str, key: str, tmp_path: Path) -> None:
    assert list(study._axes(asked(tmp_path, recipe), load_recipe(recipe), ())) == [key]
    neither = load_recipe("diff-gen", ["train.mixing.policy=concat"])
    with pytest.raises(RecipeError, match="neither a strength nor a fraction"):
        study._axes(asked(tmp_path, "diff-gen"), neither, ())


def test_a_number_and_a_list_of_it_are_one_value() -> None:
    assert study._at({"generate": {"strength": [0.5]}}, "generate.strength") == 0.5
    assert study._at({"generate": {"strength": [0.5, 0.7]}}, "generate.strength") == [0.5, 0.7]
