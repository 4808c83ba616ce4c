"""Prompts: rendered for every class, safe with any name, checked against the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from variegate.errors import RecipeError
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe import BackendSection, PromptsSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.prompts.stage import check, inputs, run
from variegate.stages.prompts.templates import Material, missing_captions, render_all
from variegate.store import RunFolder
from variegate.templates import render

CLASSES = [ClassInfo(0, "red_owl", "0000", "a red owl"), ClassInfo(1, "{cat} {}", "0001", "a cat")]
IMAGES = [RealImage(f"i{k}", "", k % 2, "train", caption=f"caption {k}") for k in range(4)]


def test_names_with_underscores_and_braces() -> None:
    lines = render_all(Material([["a {{photo}} of {name}"]] * 2), CLASSES, IMAGES)
    assert [line.prompt for line in lines] == ["a {photo} of red owl", "a {photo} of {cat} {}"]
    assert render("{name}, {environment}", name="a", environment="{name}") == "a, {name}"


def test_texts_times_environments_and_captions() -> None:
    lines = render_all(Material([["{name}", "{name} {environment}"]], ["at night", "in snow"]), CLASSES[:1], IMAGES[:1])
    assert [(line.text, line.environment, line.prompt) for line in lines] == [
        (0, None, "red owl"),
        (1, 0, "red owl at night"),
        (1, 1, "red owl in snow"),
    ]
    lines = render_all(Material([["{name}: {caption}"]] * 2), CLASSES, IMAGES)
    assert [(line.image, line.prompt) for line in lines][:2] == [
        ("i0", "red owl: caption 0"),
        ("i2", "red owl: caption 2"),
    ]


def test_missing_captions_are_counted_before_anything_is_drawn() -> None:
    (problem,) = missing_captions("prompts.text", ["a {caption}"], 5, 2)
    assert "2 of 5 training images have none" in problem.what and "{name}" in problem.remedy
    assert not missing_captions("prompts.text", ["a {name}"], 5, 2)


def test_a_class_without_description_goes_by_its_name() -> None:
    lines = render_all(
        Material([["a photo of a {description}"]] * 2),
        [ClassInfo(0, "tree_ant", "0"), ClassInfo(1, "b", "1", "bee with a red back")],
        [],
    )
    assert [line.prompt for line in lines] == ["a photo of a tree ant", "a photo of a bee with a red back"]


def recipe_of(model: Path, **prompts: object) -> Recipe:
    return Recipe(backend=BackendSection(model=str(model)), prompts=PromptsSection(**prompts))


def test_the_file_says_what_the_model_will_be_told(tiny_sd: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_sd, text=["a photo of {name}", "{name}"])
    with RunFolder.create(tmp_path / "run") as folder:
        folder.put_dataset(CLASSES, [])
        summary = run(Context(recipe, folder, QuietReporter()))
        lines = [
            json.loads(line) for line in folder.path(folder.artefacts("prompts")["prompts"]).read_text().splitlines()
        ]
    assert [line["prompt"] for line in lines if line["label"] == 0] == ["a photo of red owl", "red owl"]
    assert summary["prompts"] == 4 and summary["longest_tokens"] <= summary["max_tokens"] == 16


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sdxl"])
def test_a_text_that_leaves_no_token_for_the_class_is_refused_before_anything_is_written(
    model: str, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of(request.getfixturevalue(model), text=["{name}", "{name} " + "cat " * 20])
    with pytest.raises(RecipeError, match="longer than the 16 tokens the model reads, even without a class name"):
        check(recipe, CLASSES, 3, 0)
    assert capfd.readouterr() == ("", "")


def test_a_class_name_that_is_too_long_is_only_worth_a_warning(tiny_sd: Path, tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run") as folder:
        folder.put_dataset([ClassInfo(0, "owl", "0"), ClassInfo(1, "red owl " * 20, "1")], [])
        summary = run(Context(recipe_of(tiny_sd), folder, QuietReporter()))
    assert "of 1 of 2 prompts the model reads only the first 16 tokens" in summary["warnings"][0]


def test_other_weights_in_the_same_model_folder_are_noticed(tiny_sd: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd, tmp_path / "model")
    recipe = Recipe(backend=BackendSection(model=str(model)))
    before = inputs(recipe)
    weights = next((model / "unet").glob("*.safetensors"))
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights)
    assert inputs(recipe) != before
