"""What a comparison trains: which arms share a run, what is refused as unfair, and what is the same twice."""

from __future__ import annotations

import json

import pytest

from variegate.comparison import plan
from variegate.comparison.plan import (
    CLASSIC_RUN,
    Entry,
    baseline,
    disagreements,
    lay_out,
    parse_curve,
    place,
    text_only,
)
from variegate.errors import Problem
from variegate.recipe import Recipe
from variegate.recipe_file import load_recipe, recipe_names


def entry(name: str, *overrides: str, shown: str = "") -> Entry:
    return Entry(shown or name, load_recipe(name, overrides))


def laid_out(*entries: Entry, best: str | None = None, copies: int = 3, skip: tuple[str, ...] = ()) -> plan.Layout:
    base = baseline(load_recipe("none"), entries[0].recipe)
    return lay_out(entries, base, copies=copies, retrieval=None, best=best, skip=skip)


def test_classic_arms_are_one_run_of_real_images() -> None:
    layout = laid_out(entry("real-mix"))
    classic = [method for method in layout.methods if method.run == CLASSIC_RUN]
    assert [method.name for method in classic] == [
        "real", "real+randaugment", "real+trivialaugment", "real+mixup", "real+cutmix", "duplicated real",
    ]  # fmt: skip
    assert {method.arm.images for method in classic} == {"real"}
    assert (classic[4].arm.train, classic[5].arm.copies) == ({"mix": "cutmix"}, 3)
    assert layout.runs[CLASSIC_RUN].generate.method == "none"


def test_recipes_that_differ_in_learning_alone_share_their_images() -> None:
    more = entry("real-mix", "train.mixing.fraction=0.6", shown="more")
    layout = laid_out(entry("real-mix"), more, entry("real-gen"))
    runs = {method.name: method.run for method in layout.methods}
    assert runs["real-mix"] == runs["more"] != runs["real-gen"]
    arms = {arm.name: arm for arm in layout.arms(runs["more"])}
    assert arms["more"].train["mixing"]["fraction"] == 0.6
    swapped = laid_out(more, entry("real-mix"))
    assert {m.name: (m.run, m.arm) for m in swapped.methods if m.of} == {
        m.name: (m.run, m.arm) for m in layout.methods if m.of in ("real-mix", "more")
    }, "the order of --recipes changes nothing"


def test_the_same_settings_under_two_names_are_trained_once() -> None:
    layout = laid_out(entry("real-mix"), entry("real-mix", shown="mine"), entry("none"), best="mixup")
    same = {method.name: method.same_as for method in layout.methods if method.same_as}
    assert same == {"mine": "real-mix", "mine + mixup": "real-mix + mixup", "none": "real"}
    assert [arm.name for arm in layout.arms(layout.methods[-1].run)].count("real-mix") <= 1


def test_a_recipe_is_combined_with_the_best_classic_augmentation() -> None:
    layout = laid_out(entry("real-mix"), best="randaugment")
    combined = next(method for method in layout.methods if method.kind == "combined")
    assert combined.name == "real-mix + randaugment"
    train = layout.runs[combined.run].train_of(combined.arm)
    assert (train.augment, train.mixing) == ("randaugment", load_recipe("real-mix").train.mixing)
    assert not [
        m for m in laid_out(entry("real-mix"), best="mixup", skip=("best-classic",)).methods if m.kind == "combined"
    ]


def test_what_is_not_a_default_names_a_run_and_what_is_one_does_not() -> None:
    """So a key that a later version adds leaves the runs of an earlier one where they are."""
    base = baseline(load_recipe("none"), entry("real-mix").recipe)
    of = lambda *overrides: place(entry("real-mix", *overrides), base)[0]  # noqa: E731
    steps = ["curate=[]", "curate=[{score: blank}, {score: copy}]", "refine=[{op: concat}]", "refine=[{op: fractal}]"]
    changed = ["generate.per_real=3", "backend.steps=7", "dataset.size_px=32", "prompts.negative=blur", *steps]
    assert len({of(), *map(of, changed)}) == 1 + len(changed)
    assert of("adapt.focus=0", "generate.referring=null", "dataset.meadow.habitat_bias=0") == of()


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "none"])
def test_every_shipped_recipe_trains_as_it_says_it_does(name: str) -> None:
    given = entry(name)
    label, run, arm = place(given, baseline(load_recipe("none"), given.recipe))
    whole = plan.settled(run, [arm], draw=3, shots=4, seeds=2)
    assert whole.train_of(arm) == given.recipe.train_of(plan.arm_of(given.recipe))
    assert (whole.generate, whole.refine, whole.curate) == (
        given.recipe.generate,
        given.recipe.refine,
        given.recipe.curate,
    )
    assert (whole.seed, whole.dataset.shots, whole.evaluate.seeds) == (3, 4, 2)


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "none"])
def test_text_only_keeps_adapter_and_number(name: str) -> None:
    given = entry(name).recipe
    found = text_only(entry(name))
    if given.generate.method.endswith("-gen"):
        assert found == ""
        return
    assert isinstance(found, Entry)
    other = found.recipe
    assert other.generate.method == f"{given.generate.method.split('-')[0]}-gen"
    assert (other.adapt, other.backend, other.prompts) == (given.adapt, given.backend, given.prompts)
    counts = [5, 5, 5]
    assert plan.largest([found], counts) == plan.largest([entry(name)], counts)


def test_where_nothing_can_be_drawn_from_text_it_is_said() -> None:
    captions = entry("real-guidance", "prompts.text=a photo of a {name}, {caption}")
    assert "captions of single images" in str(text_only(captions))
    repainting = entry("real-guidance", "generate.mask=object")
    assert "inpainting model" in str(text_only(repainting, "inpaint"))
    assert isinstance(text_only(repainting, "text-to-image"), Entry)


def test_an_unfair_comparison_is_refused_with_the_difference() -> None:
    problems = disagreements(
        [entry("real-mix"), entry("real-gen", "train.steps=600"), entry("diff-mix", "dataset.size_px=32")]
    )
    assert [problem.where for problem in problems] == ["real-gen", "diff-mix"]
    assert "train.steps differs from that of real-mix (900 -> 600)" in problems[0].what
    assert "dataset.size_px" in problems[1].what
    fair = entry("real-gen", "train.mixing.fraction=0.9", "train.augment=randaugment", "train.label.gamma=1")
    assert disagreements([entry("real-mix"), fair]) == []
    assert disagreements([entry("real-mix"), entry("real-gen", "train.label.smoothing=0")])


def test_the_baseline_learns_as_the_recipes_do() -> None:
    first = load_recipe("real-mix", ["train.steps=77", "train.label.smoothing=0.2", "dataset.size_px=32"])
    base = baseline(load_recipe("none", ["train.augment=none"]), first)
    assert (base.train.steps, base.train.label.smoothing, base.dataset.size_px) == (77, 0.2, 32)
    assert (base.train.augment, base.generate.method) == ("none", "none")


def with_arm(name: str, **train: object) -> Entry:
    arm = {"name": "mine", "images": "real+synthetic", "train": train}
    return entry(name, f"evaluate.arms={json.dumps(['real', arm])}", shown=f"my {name}")


def test_the_classifier_of_the_compared_arm_is_the_one_that_must_agree() -> None:
    own = with_arm("real-mix", model="resnet18")
    (problem,) = disagreements([entry("real-gen"), own])
    assert "train.model differs" in problem.what
    assert baseline(load_recipe("none"), own.recipe).train.model == "resnet18"


def test_many_and_few_shot_classes_are_the_same_ones_for_every_method() -> None:
    other = entry("real-gen", "evaluate.shot_bounds=[5, 20]")
    assert "evaluate.shot_bounds" in disagreements([entry("real-mix"), other])[0].what
    assert baseline(load_recipe("none"), other.recipe).evaluate.shot_bounds == (5, 20)


def test_puzzle_mix_with_transport_is_compared_with_classic_augmentations() -> None:
    puzzle = entry("real-mix", "train.mix=puzzle-mix", "train.transport=true")
    layout = laid_out(puzzle, best="mixup")
    base = baseline(load_recipe("none", ["train.mix=puzzle-mix", "train.transport=true"]), puzzle.recipe)
    for method in layout.methods:
        run = base if method.run == CLASSIC_RUN else layout.runs[method.run]
        train = plan.settled(run, [method.arm], draw=0, shots=None, seeds=1).train_of(method.arm)
        assert train.transport == (train.mix == "puzzle-mix"), method.name
    (combined,) = [method for method in laid_out(puzzle, best="randaugment").methods if method.kind == "combined"]
    train = laid_out(puzzle).runs[combined.run].train_of(combined.arm)
    assert (train.mix, train.transport, train.augment) == ("puzzle-mix", True, "randaugment")


def test_copies_are_about_as_many_as_are_drawn() -> None:
    assert plan.copies_of([12, 12], [5, 5]) == 2
    assert plan.copies_of([1, 1], [5, 5]) == 1
    assert plan.copies_of([0, 0], [5, 5]) == 0


def test_curves_are_read_or_refused() -> None:
    assert parse_curve("generate.per_real=2,4", ["a"]).name("2") == "a generate.per_real=2"  # type: ignore[union-attr]
    for text in (
        "generate.per_real",
        "generate.per_real=2",
        "b:generate.per_real=2,4",
        "evaluate.seeds=1,2",
        "train.steps=5,9",
        "seed=1,2",
    ):
        assert isinstance(parse_curve(text, ["a"]), Problem), text


def test_a_key_of_learning_makes_a_curve_of_arms_in_one_run() -> None:
    points = [
        Entry(f"real-mix f={f}", load_recipe("real-mix", [f"train.mixing.fraction={f}"]), "curve", "real-mix")
        for f in (0.1, 0.3)
    ]
    layout = laid_out(entry("real-mix"), *points)
    assert len({method.run for method in layout.methods}) == 2
    assert {method.name: method.same_as for method in layout.methods if method.kind == "curve"} == {
        "real-mix f=0.1": "", "real-mix f=0.3": "real-mix",
    }  # fmt: skip


def test_recipes_are_not_changed() -> None:
    given = Recipe()
    before = given.model_dump()
    text_only(Entry("x", given))
    assert given.model_dump() == before
