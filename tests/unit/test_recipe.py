"""Recipes: every problem at once, in words, with its place; and no dead options."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import variegate
from variegate.api import settle
from variegate.errors import RecipeError
from variegate.recipe import Recipe, Section
from variegate.recipe_file import difference, dump_recipe, idle_settings, load_recipe, parse_yaml

SOURCE = Path(variegate.__file__).parent


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path), overrides)
    return str(caught.value)


def test_all_problems_come_at_once_with_their_lines(tmp_path: Path) -> None:
    said = problems(
        tmp_path, "seed: x\ngenerate: {strenght: 1}\ntrain:\n  mixing: {policy: pol}\n", "train.stepz=3", "nonsense"
    )
    for part in (
        "r.yaml:1: seed",
        "did you mean 'strength'",
        "r.yaml:4: train.mixing.policy",
        "did you mean 'steps'",
        "KEY=VALUE",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("generate: {strength: 0}", "greater than 0"),
        ("generate: {strength: [0.5, 1.5]}", "generate.strength.1"),
        ("generate: {strength: [0.5], strength_policy: uniform}", "[low, high]"),
        ("prompts: {text: 'a {nmae}'}", "unknown {nmae}"),
        ("prompts: {text: 'a {name'}", "unbalanced"),
        ("prompts: {text: 'a {environment}'}", "environments is empty"),
        ("train: {steps: 10, epochs: 3}", "set the other to null"),
        ("train: {reweight_from: 0.8}", "set class_weights"),
        ("train: {loss: balanced-softmax, class_weights: class-balanced}", "together twice"),
        ("train: {sample_by: class, class_weights: class-balanced}", "sample_by class"),
        ("train: {loss: ldma}", "did you mean 'ldam'"),
        ("train: {mix: cmo}\nevaluate: {arms: [real, synthetic]}", "patches of real images"),
        ("evaluate: {shot_bounds: [100, 20]}", "two rising numbers"),
        ("dataset: {meadow: {uncommon_test: true}}", "set habitat_bias"),
        ("train: {pools: [runs/a]}\nevaluate: {arms: [real]}", "no arm of evaluate.arms uses any"),
        ("generate: {referring: 2}", "move images between classes and method is real-aug"),
        ("generate: {method: real-mix, mask: background}", "would call it another class"),
        ("train: {transport: true, mix: cutmix}", "transport is a part of puzzle-mix"),
        ("train: {last_stages: 2}", "last_stages has no effect on mode full"),
        ("train: {mode: linear-probe}", "those are chance; set pretrained"),
        ("train: {mode: last-stages, pretrained: false}", "mode last-stages keeps most weights as they are"),
        ("train: {mix_probability: 0.5}", "mix_probability has no effect on mix none"),
        ("train: {mix: puzzle-mix, mix_alpha: 1}", "it is for mixup, cutmix, mixup+cutmix, manifold-mixup"),
        ("train: {mix: cutmix, fractal_share: 0.3}", "set mix: fractal-mixup"),
        ("train: {mix: fractal-mixup, fractal_share: [0.3, 0.2]}", "should be [low, high]"),
        ("train: {ldam: {scale: 20}}", "ldam has no effect on loss ce"),
        ("train: {class_balance_beta: 0.99}", "class_weights is none"),
        ("generate: {source_by: image}", "source_by is for methods that move images between classes"),
        ("backend: {image_guidance_scale: 2}", "is for generate.method edit and it is real-aug"),
        ("generate: {method: none}", "arms: [real]"),
        ("generate: {method: ti-aug}", "use real-aug"),
        ("evaluate: {arms: [real, real]}", "different names"),
        ("refine: [{op: fractl}]", "r.yaml:1: refine.0: unknown op 'fractl' — did you mean 'fractal'?"),
        ("refine: [{op: fractal}, {op: concat, seem: 1}]", "refine.1.seem: unknown key — did you mean 'seam'?"),
        ("refine: [{op: fractal, weight: [0.3, 0.2]}]", "should be [low, high]"),
        ("refine: [{op: concat, seam: 0.5, seam_px: 4}]", "give one of them"),
        ("refine: [{op: hybrid-blend, encoder: 'clip:x', text: 'a photo'}]", "says nothing of the class"),
        ("refine: [{op: hybrid-blend, encoder: 'clip:x', stride: 0.3}]", "parts would not be seen"),
        (
            "refine: [{op: hybrid-blend, encoder: 'clip:x', map: dense, patch: 0.2}]",
            "patch 0.2 has no effect on map dense",
        ),
        ("refine: [{weight: 1}]", "refine.0: has no op"),
        ("refine: [{op: patches}]\ngenerate: {method: real-gen}", "use real-aug or real-mix, or leave patches out"),
        ("refine: [{op: fractal}]\ngenerate: {method: none}\nevaluate: {arms: [real]}", "set refine: []"),
        ("- a list", "mapping of sections"),
        ("seed: [", "not valid YAML"),
        ("prompts: {text: {{name}}}", "put quotes around text that holds braces"),
        ("[a, b]: 3", "a key must be a word"),
        ('seed: !!int "abc"', "not valid YAML"),
        ("seed: !!bool maybe", "not valid YAML"),
        ("seed: !!timestamp x", "not valid YAML"),
        ("seed: !!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_each_wrong_value_is_explained(tmp_path: Path, text: str, part: str) -> None:
    assert part in problems(tmp_path, text)


def test_a_wrong_item_in_a_list_given_by_set_is_found_there_with_the_near_word(tmp_path: Path) -> None:
    said = problems(tmp_path, "seed: 0\ncurate:\n  - {score: blank}\n", "curate=[{score: blnk}]")
    assert said.startswith("--set curate=[{score: blnk}]: curate.0.score: input should be")
    assert "did you mean 'blank'?" in said


def test_replacing_images_by_ones_drawn_from_text_is_refused_before_drawing(tmp_path: Path) -> None:
    said = problems(tmp_path, "generate: {method: real-gen}\ntrain: {mixing: {policy: replace}}\n")
    assert "use pool or concat" in said


def test_yaml_is_read_as_people_mean_it() -> None:
    assert parse_yaml("[no, 1e-4, 012, 12:30, true, 2020-01-01]", "x") == [
        "no",
        1e-4,
        "012",
        "12:30",
        True,
        "2020-01-01",
    ]


def test_overrides_reach_into_sections_and_lists(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("curate: [{score: blank}]\n")
    recipe = load_recipe(
        str(path), ["train.lr=1e-4", "curate.0.policy=weight", "generate.strength=[0.3, 0.7]"], "birds"
    )
    assert (recipe.train.lr, recipe.curate[0].policy, recipe.generate.strength) == (1e-4, "weight", [0.3, 0.7])
    assert recipe.dataset.path == "birds"


@pytest.mark.parametrize("place", ["3", "blank"])
@pytest.mark.parametrize("key", ["", ".policy"])
def test_an_override_names_an_item_that_the_list_has(tmp_path: Path, place: str, key: str) -> None:
    said = problems(tmp_path, "curate: [{score: blank}]\n", f"curate.{place}{key}=weight")
    assert f"curate.{place}: no such item in a list of 1" in said


def test_a_prompt_with_braces_needs_no_quotes_after_set_and_is_told_to_in_a_file(tmp_path: Path) -> None:
    assert load_recipe("real-gen", ["prompts.text={description}"]).prompts.text == "{description}"
    assert "put quotes around" in problems(tmp_path, "prompts: {text: {name}}")


def test_a_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    recipe = load_recipe("real-mix", ["seed=3"])
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    assert difference(recipe.model_dump(), load_recipe("real-mix", ["seed=4"]).model_dump()) == ["seed: 3 -> 4"]


def test_steps_of_a_list_differ_key_by_key_and_keys_that_came_later_do_not(tmp_path: Path) -> None:
    old, new = (
        load_recipe("variegate", [f"curate=[{{score: copy, of_sources: {known}}}]"]) for known in ("true", "false")
    )
    lines = difference(old.model_dump(mode="json"), new.model_dump(mode="json"))
    assert lines == ["curate.0.of_sources: True -> False"]
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(old).replace("  min_images: 0\n", ""))  # as a version without that key wrote it
    assert "min_images" not in path.read_text() and load_recipe(str(path)) == old


def test_no_option_is_dead() -> None:
    """Every recipe field is read as an attribute somewhere outside recipe.py."""
    read = set()
    for path in SOURCE.rglob("*.py"):
        if path.name != "recipe.py":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    sections = [
        value for value in vars(variegate.recipe).values() if isinstance(value, type) and issubclass(value, Section)
    ]
    unread = {
        f"{section.__name__}.{field}" for section in sections for field in section.model_fields if field not in read
    }
    unread -= {"PromptsSection.method", "AdaptSection.method", "Recipe.adapt"}  # one method each; recipe.py reads them
    assert len(sections) > 10 and not unread


def test_a_section_without_keys_has_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("dataset:\n  # shots: 5\ntrain:\n  mixing:\n")
    assert load_recipe(str(path), data="photos").dataset.path == "photos"
    path.write_text("dataset: 5\n")
    with pytest.raises(RecipeError, match="r.yaml:1: dataset is no section"):
        load_recipe(str(path), data="photos")


def test_a_recipe_in_python_takes_overrides_too() -> None:
    settled = settle("photos", Recipe(), ["seed=7", "train.epochs=9"])
    assert (settled.seed, settled.train.epochs, settled.dataset.path) == (7, 9, "photos")
    with pytest.raises(RecipeError, match="did you mean 'steps'"):
        settle(None, Recipe(), ["train.stepz=9"])


def test_epochs_take_the_place_of_the_default_steps(tmp_path: Path) -> None:
    train = load_recipe("variegate", ["train.epochs=3"]).train
    assert (train.steps, train.epochs) == (None, 3)
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_recipe(load_recipe("variegate", ["train.epochs=3"])))
    assert load_recipe(str(path)).train == train
    path.write_text("train: {epochs: 3}\n")
    assert load_recipe(str(path)).train.steps is None
    assert "set the other to null" in problems(tmp_path, "train: {epochs: 3}\n", "train.steps=100")
    assert load_recipe("variegate", ["train.steps=100", "train.epochs=null"]).train.steps == 100


def test_refine_reads_back_the_same_with_one_weight_or_two(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "refine: [{op: concat, seam_px: 20}, {op: fractal, weight: 0.2}, {op: fractal, weight: [0.2, 0.3]}]\n"
    )
    recipe = load_recipe(str(path))
    assert [step.weight for step in recipe.refine[1:]] == [[0.2], [0.2, 0.3]]
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe
    assert load_recipe("real-gen", ["refine=[{op: fractal}]"]).refine[0].op == "fractal"


def test_every_section_default_is_valid() -> None:
    assert Recipe.model_validate(Recipe().model_dump()) == Recipe()


@pytest.mark.parametrize(
    ("name", "key", "reason"),
    [
        ("diff-gen", "generate.strength=0.5", "diff-gen starts from pure noise"),
        ("none", "generate.per_real=3", "nothing is drawn"),
        ("none", "curate=[]", "nothing is drawn"),
        ("real-mix", "adapt.steps=10", "nothing is learned"),
        ("real-mix", "train.mixing={policy: concat, fraction: 0.2}", ""),
        ("none", "train.mixing.fraction=0.2", "no arm learns from synthetic images"),
        ("variegate", "generate.strength=0.5", ""),
        ("none", "generate.method=none", ""),
    ],
)
def test_a_setting_that_changes_nothing_is_told_with_the_reason(name: str, key: str, reason: str) -> None:
    said = idle_settings(load_recipe(name, [key]), [key])
    assert [line.startswith(f"{key.split('=')[0]} has no effect: ") and reason in line for line in said] == (
        [True] if reason else []
    )


@pytest.mark.parametrize(
    ("overrides", "mask"),
    [
        ([], ("background", "model", True, -0.016)),
        (["generate.method=ti-aug"], ("background", "model", True, -0.016)),
        (["generate.mask=none"], ("none", "data", False, 0.0)),
        (["generate.method=diff-gen"], ("none", "data", False, 0.0)),
        (["generate.method=diff-mix"], ("none", "data", False, 0.0)),
        (["generate.mask=object", "generate.method=diff-mix"], ("object", "model", True, 0.0)),
    ],
)
def test_an_override_that_has_no_use_for_masks_takes_the_recipes_own_along(overrides: list[str], mask: tuple) -> None:
    found = load_recipe("variegate", overrides).generate
    assert (found.mask, found.mask_from, found.mask_paste, found.mask_grow) == mask


def test_other_prompts_stand_before_the_recipes_own_text_of_backgrounds() -> None:
    assert load_recipe("variegate").generate.mask_text == "a photo, {environment}"
    found = load_recipe("variegate", ["prompts.method=file", "prompts.file=p.txt"]).generate
    assert (found.mask, found.mask_text) == ("background", None)
    with pytest.raises(RecipeError, match="set mask_text to null"):
        load_recipe("variegate", ["prompts.method=file", "prompts.file=p.txt", "generate.mask_text=a photo"])


def test_what_is_asked_of_masks_beside_an_override_stays_and_is_refused() -> None:
    with pytest.raises(RecipeError, match="need a mask"):
        load_recipe("variegate", ["generate.mask=none", "generate.mask_paste=true"])
    with pytest.raises(RecipeError, match="none to start from; set mask to none"):
        load_recipe("variegate", ["generate.method=diff-gen", "generate.mask=background"])


def test_a_share_that_concat_does_not_read_is_told() -> None:
    keys = ["train.mixing.policy=concat", "train.mixing.fraction=0.2"]
    assert [line.split()[0] for line in idle_settings(load_recipe("real-mix", keys), keys)] == ["train.mixing.fraction"]
