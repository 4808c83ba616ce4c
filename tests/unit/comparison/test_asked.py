"""What a comparison is asked for: recipes settled together, and the command that repeats it."""

from __future__ import annotations

from pathlib import Path

import pytest

from variegate.comparison.asked import Asked, settle_all
from variegate.errors import RecipeError
from variegate.recipe_file import dump_recipe, load_recipe


def asked(*recipes: str, **more) -> Asked:
    return Asked(data=None, recipes=recipes, draws=2, seeds=1, **more)


def test_named_recipes_bring_their_text_only_twins_and_points() -> None:
    wanted = settle_all(asked("real-mix", "real-gen", curves=("real-gen:generate.per_real=1,2",)))
    assert [(entry.name, entry.kind) for entry in wanted.entries] == [
        ("real-mix", "recipe"),
        ("real-gen", "recipe"),
        ("real-mix, text only", "text-only"),
        ("real-gen generate.per_real=1", "curve"),
        ("real-gen generate.per_real=2", "curve"),
    ]
    assert [entry.recipe.generate.per_real for entry in wanted.entries[3:]] == [1, 2]
    assert not [e for e in settle_all(asked("real-mix", skip=("text-only",))).entries if e.kind == "text-only"]


def test_what_is_set_for_all_is_set_for_the_baseline() -> None:
    sets = ("train.steps=9", "train.augment=none", "generate.per_real=2", "train.mixing.fraction=0.9")
    wanted = settle_all(asked("real-mix", overrides=sets))
    assert (wanted.base.train.steps, wanted.base.train.augment) == (9, "none")
    assert wanted.named[0].recipe.generate.per_real == 2


def test_every_problem_of_every_recipe_is_named() -> None:
    with pytest.raises(RecipeError) as raised:
        settle_all(asked("real-mx", "diff-agu", "none", "none", skip=("mixp",)))
    text = str(raised.value)
    assert all(word in text for word in ("real-mix?", "diff-aug?", "none stands twice", "did you mean mixup?"))


def test_a_pool_needs_a_recipe_that_draws() -> None:
    with pytest.raises(RecipeError, match="none of these draws any"):
        settle_all(asked("none", pool="photos"))


def test_a_curve_over_a_key_that_does_not_exist() -> None:
    with pytest.raises(RecipeError, match="did you mean 'strength'"):
        settle_all(asked("real-mix", curves=("generate.strenght=0.1,0.2",)))


def test_the_command_repeats_the_comparison() -> None:
    said = asked("real-mix", "my file.yaml", shots=(5, 20), out=Path("out"), curves=("a=1,2",), overrides=("x=[1, 2]",))
    assert said.command() == (
        "variegate compare --recipes 'real-mix,my file.yaml' --draws 2 --seeds 1 --shots 5,20 "
        "--curve a=1,2 --set 'x=[1, 2]' --out out"
    )


@pytest.mark.parametrize("name", ["real", "retrieval", "real+mixup"])
def test_a_file_named_like_a_baseline_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.yaml").write_text(dump_recipe(load_recipe("real-mix")))
    with pytest.raises(RecipeError, match="is what a baseline is called"):
        settle_all(asked(str(tmp_path / f"{name}.yaml")))


def test_a_setting_that_changes_no_recipe_is_warned_about_and_one_that_changes_some_is_not() -> None:
    wanted = settle_all(asked("diff-gen", "real-gen", overrides=("generate.strength=0.5",)))
    assert wanted.warnings == ("--set generate.strength has no effect: diff-gen starts from pure noise",)
    assert settle_all(asked("diff-gen", "real-mix", overrides=("generate.strength=0.5",))).warnings == ()
