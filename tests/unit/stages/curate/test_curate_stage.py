"""The curate stage on a small run: what it writes down, whom it believes, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from tiny_models import transformers_clip_folder  # noqa: F401 - fixture

from variegate.classifier.models import model_bytes, open_classifier
from variegate.encoders import open_encoder
from variegate.errors import MissingExtra, ModelError, RecipeError
from variegate.image_text import open_clip_model
from variegate.images import load_squares
from variegate.recipe import CurateStep, Recipe
from variegate.stages.curate import jury, stage
from variegate.stages.train import stage as train_stage

BLANK = {"score": "blank"}


def agreement(**keys: object) -> dict:
    return {"score": "class-agreement", **keys}


def test_blank_images_are_dropped_and_stay_on_disk(coloured_run) -> None:
    context = coloured_run(curate=[BLANK])
    summary = stage.run(context)
    assert summary["line"] == "18 in, 15 kept, 3 dropped (blank 3)"
    images = context.folder.synthetic_images(kept_only=False)
    assert [image.reason for image in images if image.action == "drop"] == ["blank"] * 3
    assert all(context.folder.path(image.path).is_file() for image in images)
    assert len(context.folder.synthetic_images()) == 15
    scores = context.folder.scores("blank")
    assert len(scores) == 18
    assert sorted(scores.values())[:4] == [0.0, 0.0, 0.0, pytest.approx(0.5, abs=0.5)]


def test_curating_again_replaces_its_own_decisions_and_no_human_ones(coloured_run) -> None:
    context = coloured_run(curate=[BLANK])
    stage.run(context)
    first = context.folder.synthetic_images()[0].id
    context.folder.put_decisions("human", [(first, "drop", 0.0, "ugly")])
    stage.run(context)
    dropped = [image for image in context.folder.synthetic_images(kept_only=False) if image.action == "drop"]
    assert sorted(image.reason for image in dropped) == ["blank", "blank", "blank", "ugly"]


def test_the_drawing_models_features_are_scored_and_their_judge_described(coloured_run, drawing_model: Path) -> None:
    """A random network's features on 15 images: whether they convince is chance, what follows from it is not."""
    steps = [BLANK, agreement(policy="weight", drop_below=0.05)]
    context = coloured_run(curate=steps, backend={"model": str(drawing_model), "guidance_scale": 1.0})
    summary = stage.run(context)
    (judge,) = summary["judges"]
    scores = context.folder.scores("class-agreement")
    assert len(scores) == 18
    assert all(0.0 <= value <= 1.0 for value in scores.values())
    assert judge["held_out_low"] < judge["held_out_accuracy"]
    assert judge["used"] == (judge["held_out_low"] >= 1.5 * judge["chance"])
    kept = context.folder.synthetic_images()
    if judge["used"]:
        assert "right on" in summary["line"]
        assert [image.weight for image in kept] == pytest.approx([min(1.0, 2 * scores[image.id]) for image in kept])
    else:
        assert "was not used" in summary["line"]
        assert {image.weight for image in kept} == {1.0}


def test_the_recipes_own_classifier_finds_images_of_another_class(coloured_run) -> None:
    """The first image of each class is replaced by one of the next class."""
    context = coloured_run(
        curate=[agreement(encoder="classifier", policy="weight")],
        train={"steps": 60, "batch": 15, "lr": 0.005},
        splits={"train": 10, "val": 16, "test": 2},
    )
    images = context.folder.synthetic_images(kept_only=False)
    of_class = [[image for image in images if image.target == label] for label in range(3)]
    wrong = [of_class[label][0].id for label in range(3)]
    right = [image.id for own in of_class for image in own[1:-1]]  # the last of each class is black
    for label in range(3):
        other = of_class[(label + 1) % 3][1]
        context.folder.write(of_class[label][0].path, context.folder.path(other.path).read_bytes())
    summary = stage.run(context)
    scores = context.folder.scores("class-agreement classifier")
    assert max(scores[one] for one in wrong) < min(scores[one] for one in right)
    (judge,) = summary["judges"]
    assert judge["used"] and judge["held_out_accuracy"] > 0.9
    assert "judge right on" in summary["line"]
    stage.run(context)
    assert context.folder.scores("class-agreement classifier") == scores  # the same bytes when done again


def test_the_classifier_as_a_judge_needs_validation_images(coloured_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jury, "teach_jury", lambda *args, **keys: pytest.fail("taught in vain"))
    context = coloured_run(curate=[agreement(encoder="classifier")], splits={"train": 3, "test": 2})
    summary = stage.run(context)
    assert "was not used: a judge needs validation images" in summary["line"]
    assert not summary["judges"][0]["used"]


@pytest.fixture
def taught(coloured_run) -> tuple[Callable, Path]:
    """A run that is curated by a classifier from a file, with other keys each time; and the folder of that file."""
    keys = {"train": {"steps": 60, "batch": 15, "lr": 0.005}, "splits": {"train": 10, "val": 16, "test": 2}}
    context = coloured_run(**keys, evaluate={"arms": ["real"], "seeds": 1})
    train_stage.run(context)
    folder = context.folder.path("train/real/seed-0")

    def curated(encoder: str, **changes: object):
        step = CurateStep(score="class-agreement", policy="weight", encoder=encoder)
        return replace(context, recipe=context.recipe.model_copy(update={"curate": [step], **changes}))

    return curated, folder


def test_a_trained_classifier_from_a_file_judges(taught, tmp_path: Path) -> None:
    """It knows one class more than the run has, in another order."""
    curated, folder = taught
    context = curated(f"classifier:{folder}")
    summary = stage.run(context)
    scores = context.folder.scores(f"class-agreement classifier:{folder}")
    (judge,) = summary["judges"]
    assert judge["used"] and judge["held_out_accuracy"] > 0.9 and "does not tell" not in summary["line"]
    classifier, about = open_classifier(folder / "model.safetensors")
    state, more = classifier.net.state_dict(), [*about["classes"][::-1], "another"]
    order = [*range(len(about["classes"]))[::-1], 0]
    state |= {f"head.{part}": state[f"head.{part}"][order].clone() for part in ("weight", "bias")}
    state["head.bias"][-1] = -50.0
    told_nothing = {key: value for key, value in about.items() if key != "seen"} | {"classes": more}
    (tmp_path / "model.safetensors").write_bytes(model_bytes(state, told_nothing))
    context = curated(f"classifier:{tmp_path / 'model.safetensors'}")
    assert "may have seen validation or test images" in stage.run(context)["line"]
    other = context.folder.scores(f"class-agreement classifier:{tmp_path / 'model.safetensors'}")
    assert other == pytest.approx(scores, abs=1e-3)


def test_classifiers_that_cannot_judge_are_refused_before_anything_is_drawn(taught, tmp_path: Path) -> None:
    curated, folder = taught
    recipe, names = curated(f"classifier:{folder}").recipe, [info.name for info in curated("").folder.classes()]
    test = {image.sha256 for image in curated("").folder.real_images("test")}
    train = {image.sha256 for image in curated("").folder.real_images("train")}
    stage.check(recipe, names, test)
    with pytest.raises(RecipeError, match="has learned from 30 images that are validation or test images here"):
        stage.check(recipe, names, train)
    with pytest.raises(RecipeError, match=r"tells .*, .* and not mammoth — use one taught with these class names"):
        stage.check(recipe, [*names, "mammoth"], test)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    for wrong in (tmp_path / "model.safetensors", tmp_path / "nothing"):
        with pytest.raises(RecipeError, match="is no classifier written by variegate"):
            stage.check(curated(f"classifier:{wrong}").recipe, names, test)


def test_a_replaced_file_judges_anew(taught) -> None:
    curated, folder = taught
    context = curated(f"classifier:{folder}")
    before = stage.found(context)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    assert stage.found(context) != before


def test_clip_judges_through_open_clip(coloured_run, clip_folder: Path) -> None:
    context = coloured_run(curate=[agreement(encoder=f"clip:{clip_folder}", policy="weight")])
    summary = stage.run(context)
    assert summary["judges"][0]["encoder"] == f"clip:{clip_folder}"
    assert len(context.folder.scores(f"class-agreement clip:{clip_folder}")) == 18


def test_clip_features_have_length_one_and_follow_the_pixels(coloured_run, clip_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with open_encoder(f"clip:{clip_folder}", coloured_run().recipe) as encoder:
        assert encoder.size_px == 32
        found = encoder.features(pixels)
        assert found.shape == (5, 16)
        assert np.linalg.norm(found, axis=1) == pytest.approx(1.0, abs=1e-5)
        assert np.abs(encoder.features(pixels[3:4])[0] - found[3]).max() < 1e-5


class Encoder:
    """Says what it is told: the class's own direction for red and green, noise for the images it does not see: all but a share `sees`."""

    size_px = 16

    def __init__(self, sees: float) -> None:
        self.sees = sees

    def features(self, pixels: np.ndarray) -> np.ndarray:
        colours = pixels.reshape(len(pixels), -1, 3).max(axis=1).astype(np.float32)
        dice = [np.random.default_rng(seed) for seed in pixels.reshape(len(pixels), -1)[:, :200].astype(np.uint32)]
        return np.stack(
            [
                colour if die.random() < self.sees else die.normal(size=3)
                for colour, die in zip(colours, dice, strict=True)
            ]
        )


@pytest.fixture
def judged(coloured_run, monkeypatch: pytest.MonkeyPatch):
    """Run curate with a judge whose eyes are known."""

    def make(step: dict, *, sees: float):
        monkeypatch.setattr(stage, "open_encoder", lambda name, recipe: nullcontext(Encoder(sees)))
        context = coloured_run(curate=[step])
        return context, stage.run(context)

    return make


@pytest.mark.parametrize("keys", [{"policy": "weight"}, {"drop_below": 0.9}, {"drop_fraction": 0.5}])
def test_a_weak_judge_decides_nothing_and_the_summary_says_so(judged, keys: dict) -> None:
    context, summary = judged(agreement(**keys), sees=0.0)
    assert summary["judges"][0]["used"] is False
    assert "was not used: its judge is right on" in summary["line"]
    assert len(summary["warnings"]) == 1
    assert {(image.action, image.weight) for image in context.folder.synthetic_images(kept_only=False)} == {
        ("keep", 1.0)
    }


def test_a_judge_is_asked_where_every_class_has_the_images_it_wants(coloured_run) -> None:
    keys = {"train": {"steps": 60, "batch": 15, "lr": 0.005}, "splits": {"train": 10, "val": 16, "test": 2}}
    context = coloured_run(curate=[agreement(encoder="classifier", policy="weight", min_images=11)], **keys)
    summary = stage.run(context)
    assert "class-agreement classifier was not asked: 10 training images of" in summary["line"]
    assert "min_images 11" in summary["line"] and not summary["warnings"] and not summary["judges"]
    assert not context.folder.scores("class-agreement classifier"), "nothing was trained for it"
    assert {image.weight for image in context.folder.synthetic_images()} == {1.0}


def test_a_judge_is_listened_to_where_it_is_right_as_often_as_asked(judged) -> None:
    _, before = judged(agreement(policy="weight"), sees=0.9)
    right = before["judges"][0]["held_out_accuracy"]
    assert before["judges"][0]["used"] and right < 1.0
    context, summary = judged(agreement(policy="weight", min_accuracy=(1 + right) / 2), sees=0.9)
    assert f"its judge is right on {100 * right:.0f} % of held-out real images, min_accuracy" in summary["line"]
    assert not summary["judges"][0]["used"] and not summary["warnings"]
    assert len(context.folder.scores("class-agreement")) == 18, "its opinion is kept all the same"
    assert {image.weight for image in context.folder.synthetic_images()} == {1.0}
    context, summary = judged(agreement(policy="weight", min_accuracy=right - 0.01), sees=0.9)
    assert summary["judges"][0]["used"]
    assert min(image.weight for image in context.folder.synthetic_images()) < 1.0


def test_agreement_below_one_half_weighs_an_image_down(judged) -> None:
    context, summary = judged(agreement(policy="weight"), sees=1.0)
    scores = context.folder.scores("class-agreement")
    kept = context.folder.synthetic_images()
    assert summary["judges"][0]["used"] and len(kept) == 18
    assert [image.weight for image in kept] == pytest.approx([min(1.0, 2 * scores[image.id]) for image in kept])
    assert min(image.weight for image in kept) < 1.0


def test_several_views_give_one_opinion_that_a_restart_repeats(judged) -> None:
    """DIAGen weighs by the mean over five views; the whole image is one of ours."""
    context, summary = judged(agreement(policy="weight", views=5), sees=1.0)
    five = context.folder.scores("class-agreement")
    stage.run(context)
    assert context.folder.scores("class-agreement") == five and summary["judges"][0]["used"]
    context, _ = judged(agreement(policy="weight"), sees=1.0)
    single = context.folder.scores("class-agreement")
    assert five != single
    assert all(one / 5 - 1e-6 <= five[name] <= (one + 4) / 5 + 1e-6 for name, one in single.items())


def test_the_judges_calibration_is_told(judged) -> None:
    """DIAGen prints its temperature and the calibration error before and after, on held-out images."""
    _, summary = judged(agreement(policy="weight"), sees=1.0)
    (judge,) = summary["judges"]
    assert judge["temperature"] > 0 and 0 <= judge["ece_after"] <= 1
    before, after = (f"{100 * judge[key]:.1f} %" for key in ("ece_before", "ece_after"))
    assert f"calibration error {before} before its temperature and {after} after" in summary["line"]


def test_habitats_that_all_classes_share_do_not_bind_images_together(coloured_run, monkeypatch) -> None:
    seen: list[set[str]] = []
    monkeypatch.setattr(stage, "train_judge", lambda features, labels, groups, *, seed: seen.append(set(groups)))
    monkeypatch.setattr(stage, "open_encoder", lambda name, recipe: nullcontext(Encoder(sees=1.0)))
    context = coloured_run(curate=[agreement()])
    images = context.folder.real_images()
    context.folder.put_dataset(context.folder.classes(), [replace(image, group="meadow") for image in images])
    stage.run(context)
    context.folder.finish_stage("dataset", "key", 1.0, {"line": "", "groups_split": False})
    stage.run(context)
    assert [len(groups) for groups in seen] == [1, 15]


def test_the_share_asked_for_is_dropped_lowest_first(judged) -> None:
    context, summary = judged(agreement(drop_fraction=0.2), sees=1.0)
    assert summary["dropped"] == {"off-class": 3}
    assert "judge right on" in summary["line"]
    scores = context.folder.scores("class-agreement")
    for label in range(3):
        members = [image for image in context.folder.synthetic_images(kept_only=False) if image.target == label]
        lowest = min(scores[image.id] for image in members)
        assert [scores[image.id] for image in members if image.action == "drop"] == [lowest]


def test_without_a_threshold_worse_than_a_guess_is_dropped(judged) -> None:
    context, _ = judged(agreement(), sees=1.0)
    scores = context.folder.scores("class-agreement")
    for image in context.folder.synthetic_images(kept_only=False):
        assert (image.action == "drop") == (scores[image.id] < 1 / 3)


def test_a_class_left_with_nothing_is_warned_of(coloured_run) -> None:
    context = coloured_run(curate=[BLANK], drawn=1)
    summary = stage.run(context)
    assert "every synthetic image of blue was dropped" in summary["warnings"]


def test_no_synthetic_images_is_no_trouble(coloured_run, drawing_model: Path) -> None:
    context = coloured_run(drawn=0, curate=[BLANK, agreement()])
    assert stage.run(context)["line"] == "0 in, 0 kept, 0 dropped"


@pytest.mark.parametrize("key", [{"policy": "weight"}, {"drop_below": 0.1}, {"encoder": "clip:x"}, {"views": 5}])
def test_keys_that_blank_would_ignore_are_refused(coloured_run, key: dict) -> None:
    with pytest.raises(RecipeError, match="has no effect on blank"):
        stage.check(coloured_run(curate=[BLANK | key]).recipe)


def test_unknown_encoders_are_refused_with_the_nearest_name(coloured_run) -> None:
    steps = [agreement(encoder="dino"), agreement(encoder="clip:ViT-B-32/laion2b_s34b_b97k")]
    with pytest.raises(RecipeError) as caught:
        stage.check(coloured_run(curate=steps).recipe)
    assert len(caught.value.problems) == 2
    assert "did you mean clip:ViT-B-32/laion2b_s34b_b79k" in str(caught.value)


def test_pickled_clip_weights_are_refused(tmp_path: Path, coloured_run) -> None:
    (tmp_path / "open_clip_config.json").write_text("{}")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="only weight format"), open_encoder(f"clip:{tmp_path}", coloured_run().recipe):
        pass


def test_clip_without_open_clip_names_the_extra(coloured_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"variegate\[clip\]"):
        stage.check(coloured_run(curate=[agreement(encoder="clip:ViT-B-32/openai")]).recipe)


# ------------------------------------------------------------------------------------------------ told of the classes


def told(**keys: object) -> dict:
    return {"score": "text-agreement", **keys}


def test_images_are_asked_for_their_own_text(coloured_run, transformers_clip_folder: Path) -> None:  # noqa: F811
    """Probability of the target's text among all classes' texts, calibrated on real images that taught the model nothing."""
    encoder = f"clip:{transformers_clip_folder}"
    context = coloured_run(curate=[told(encoder=encoder, drop_fraction=0.5)])
    summary = stage.run(context)
    scores, (judge,) = context.folder.scores(f"text-agreement {encoder}"), summary["judges"]
    images = context.folder.synthetic_images(kept_only=False)
    assert len(scores) == 18 and all(0.0 <= value <= 1.0 for value in scores.values())
    model = open_clip_model(encoder, "here")
    texts = model.text_features([f"a photo of a {info.name}" for info in context.folder.classes()]).numpy()
    pixels = load_squares([context.folder.path(image.path) for image in images], model.size_px)
    closest = (model.features(pixels) @ texts.T).argmax(axis=1)
    for image, label in zip(images, closest, strict=True):  # softmax keeps the order
        assert (scores[image.id] > 1 / 3) >= (label == image.target)
    assert judge["held_out_accuracy"] is not None
    assert judge["used"] or "was not used" in summary["line"]  # random weights: whether they convince is chance


def test_a_pair_of_prompts_is_yes_or_no_for_each_image(coloured_run, transformers_clip_folder: Path) -> None:  # noqa: F811
    """Diff-Mix's filter: the same words for and against leave every image at one half, so that nobody listens to it."""
    same = "a photo of a {name}"
    context = coloured_run(curate=[told(encoder=f"clip:{transformers_clip_folder}", text=same, against=same)])
    summary = stage.run(context)
    scores = context.folder.scores(f"text-agreement clip:{transformers_clip_folder}")
    assert list(scores.values()) == pytest.approx([0.5] * 18)
    assert "was not used" in summary["line"] and len(context.folder.synthetic_images()) == 18


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (told(), "needs an image-text model"),
        (told(encoder="clip:starter", text="a photo"), "says the same of every class"),
        (told(encoder="clip:starter", text="{environment}"), "unknown {environment}"),
    ],
)
def test_a_text_that_tells_nothing_is_refused_with_the_recipe(step: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Recipe(curate=[step])


def test_texts_on_other_scores_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"curate.0.text: has no effect on class-agreement"):
        stage.check(Recipe(curate=[agreement(text="a {name}")]))


def test_classifiers_that_start_from_a_replaced_file_judge_anew(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"one")
    values = {
        "curate": [agreement(encoder="classifier")],
        "train": {"pretrained": str(tmp_path / "weights.safetensors")},
    }
    before = stage.inputs(Recipe.model_validate(values))
    (tmp_path / "weights.safetensors").write_bytes(b"another")
    assert stage.inputs(Recipe.model_validate(values)) != before
