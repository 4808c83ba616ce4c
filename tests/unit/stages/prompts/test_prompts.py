"""Prompts: rendered for every class, safe with any name, checked against the model."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from variegate.errors import RecipeError
from variegate.phrases import phrases_of
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


# ------------------------------------------------------------------------------------------ slots, banks and files


def test_no_slot_left_empty_leaves_a_comma_or_a_gap_as_dasdiffs_dangling_comma() -> None:
    text = "a photo of a {name} {environment}, {style}, {caption}"
    assert render(text, name="owl") == "a photo of a owl"
    assert render(text, name="owl", style="ink drawing") == "a photo of a owl, ink drawing"
    assert render(text, name="owl", environment="in snow", caption="grey") == "a photo of a owl in snow, grey"
    assert render("{environment}, {style}: {name}", name="owl") == ": owl"
    assert render("{style}, a {name}", name="owl, old, ") == "a owl, old,"


def test_a_description_with_its_own_article_doubles_none() -> None:
    assert render("a photo of a {description}", name="x", description="an old owl") == "a photo of an old owl"
    assert render("a photo of the {description}", name="x", description="The owl") == "a photo of The owl"
    assert render("a photo of a {name}", name="a") == "a photo of a a"  # a class may be the letter


def stage_of(recipe: Recipe, root: Path, images: list[RealImage] = IMAGES) -> tuple[list[dict], dict]:
    with RunFolder.create(root) as folder:
        folder.put_dataset(CLASSES, images)
        summary = run(Context(recipe, folder, QuietReporter()))
        text = folder.path("prompts/prompts.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()], summary


def test_a_bank_of_places_and_a_list_of_styles_fill_their_slots(tiny_sd_long: Path, tmp_path: Path) -> None:
    recipe = recipe_of(
        tiny_sd_long,
        text=["{name} {environment}", "{name}, {style}"],
        environments="animals",
        styles=["ink", "ink", "oil"],
    )
    check(recipe, CLASSES, 4, 0)
    rows, summary = stage_of(recipe, tmp_path / "run")
    places = phrases_of("animals", "environments").phrases
    mine = [row for row in rows if row["label"] == 0]
    assert [row["prompt"] for row in mine if row["text"] == 0] == [f"red owl {place}" for place in places]
    assert [(row["prompt"], row["style"]) for row in mine if row["text"] == 1] == [
        ("red owl, ink", 0),
        ("red owl, oil", 1),
    ]
    assert any("styles: 1 of 3 lines repeat" in warning for warning in summary["warnings"])


def test_a_changed_phrase_file_is_noticed(tiny_sd: Path, tmp_path: Path) -> None:
    path = tmp_path / "places.txt"
    path.write_text("in snow\n")
    recipe = recipe_of(tiny_sd, text="{name} {environment}", environments=str(path))
    before = inputs(recipe)
    path.write_text("in snow\nin rain\n")
    assert inputs(recipe) != before


def test_each_class_has_the_prompts_of_its_own_in_a_file(tiny_sd: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(
        "class_name;class_idx;prompt\nred owl;1;a wet {name}\nred owl;2;a {name} {environment}\n{cat} {};1;the {name}\n"
    )
    recipe = recipe_of(tiny_sd, method="file", file=str(path), environments=["in snow", "on the sea"])
    check(recipe, CLASSES, 4, 0)
    rows, _ = stage_of(recipe, tmp_path / "run")
    assert [(row["label"], row["text"], row["prompt"]) for row in rows] == [
        (0, 0, "a wet red owl"),
        (0, 1, "a red owl in snow"),
        (0, 1, "a red owl on the sea"),
        (1, 0, "the {cat} {}"),
    ]


def test_what_a_file_cannot_give_is_said_before_anything_slow(tiny_sd: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a photo of an owl {caption}\na red {name} {style}\n")
    recipe = recipe_of(tiny_sd, method="file", file=str(path), environments=["in snow"])
    with pytest.raises(RecipeError) as caught:
        check(recipe, CLASSES, 4, 1)
    for part in ("1 of 4 training images have none", "uses {style} and prompts.styles is empty", "no text of"):
        assert part in str(caught.value)
    learned = Recipe.model_validate(
        {**recipe_of(tiny_sd, method="file", file=str(path), styles=["ink"]).model_dump(),
         "adapt": {"method": "tokens"}, "generate": {"method": "ti-aug"}}
    )  # fmt: skip
    with pytest.raises(RecipeError, match="1 prompts never say {name}"):
        check(learned, CLASSES, 4, 0)


def test_a_background_is_drawn_from_words_of_its_own(tiny_sd: Path, tmp_path: Path) -> None:
    """They say nothing of a class, with learned tokens too: those are told where the class is drawn, and it is kept."""
    values = recipe_of(tiny_sd, text="a {name}, {environment}", environments=["in snow", "at sea"]).model_dump()
    generate = {"method": "real-aug", "mask": "background", "mask_text": "a photo, {environment}"}
    recipe = Recipe.model_validate({**values, "generate": generate})
    rows, _ = stage_of(recipe, tmp_path / "run")
    assert [(row["label"], row["prompt"]) for row in rows] == [
        (label, f"a photo, {place}") for label in (0, 1) for place in ("in snow", "at sea")
    ]
    learned = {**values, "generate": {**generate, "method": "ti-aug"}, "adapt": {"method": "tokens"}}
    check(Recipe.model_validate(learned), CLASSES, 4, 0)
    assert inputs(recipe) != inputs(Recipe.model_validate({**values, "generate": {**generate, "mask_text": None}}))
    styled = Recipe.model_validate({**values, "generate": {**generate, "mask_text": "{style}"}})
    with pytest.raises(RecipeError, match=r"generate\.mask_text: uses {style} and prompts\.styles is empty"):
        check(styled, CLASSES, 4, 0)
    with pytest.raises(ValueError, match="prompts.method is file; set mask_text to null"):
        Recipe.model_validate({"prompts": {"method": "file", "file": "p.txt"}, "generate": generate})


def test_a_file_that_tells_one_class_about_another_is_warned_of(tiny_sd_long: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a {name} beside a red owl"}\n')
    _, summary = stage_of(recipe_of(tiny_sd_long, method="file", file=str(path)), tmp_path / "run")
    assert "1 of 2 prompts name another class: '{cat} {}' is told" in summary["warnings"][0]


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        ({"environments": "animals"}, "no text says {environment}"),
        ({"text": "{name} {style}"}, "styles is empty"),
        ({"method": "file"}, "go together: file names"),
        ({"file": "p.txt"}, "go together: file names"),
        ({"llm": {"endpoint": "http://127.0.0.1/v1", "model": "m"}}, "they say who answers"),
        ({"method": "llm", "llm": {"cache": "x"}, "styles": "art"}, "use llm.contexts"),
    ],
)
def test_keys_that_would_be_for_nothing_are_refused(prompts: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate({"prompts": prompts})


@pytest.mark.parametrize(
    ("holds", "strategy", "said"),
    [("tokens+lora", "diff-gen", True), ("tokens", "ti-gen", True), ("lora", "diff-gen", False)],
)
def test_prompts_that_never_say_the_tokens_of_a_taken_adapter_are_refused(
    tiny_sd: Path, tmp_path: Path, holds: str, strategy: str, said: bool
) -> None:
    import torch

    from variegate.backends.adapter import AdapterFacts, write_adapter

    names = ("<class_0>", "<class_1>") if "tokens" in holds else ()
    tokens = [{name: torch.ones(1, 32) for name in names}] if names else []
    lora = {"unet.x.lora_A.weight": torch.ones(1, 1)} if "lora" in holds else None
    write_adapter(tmp_path, AdapterFacts(holds, ("red_owl", "{cat} {}"), names), tokens, lora)
    recipe = Recipe.model_validate(
        {**recipe_of(tiny_sd, text=["a photo of {description}", "{name}"]).model_dump(),
         "adapt": {"method": "file", "path": str(tmp_path)}, "generate": {"method": strategy}}
    )  # fmt: skip
    with (
        pytest.raises(RecipeError, match="1 prompts never say {name}.*an adapter without tokens")
        if said
        else nullcontext()
    ):
        check(recipe, CLASSES, 4, 0)
    (tmp_path / "adapter.json").write_text("{}")
    check(recipe, CLASSES, 4, 0)  # what is wrong with an adapter is said where it is taken
