"""Weights and encoders that have learned from validation or test images are refused by hash."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from variegate.api import measure_quality
from variegate.errors import DataError, ModelError, RecipeError
from variegate.images import encode_image
from variegate.leaks import marks, seen_by
from variegate.stages.curate import stage as curate
from variegate.stages.train import stage as train

REAL = {"arms": ["real"], "seeds": 1}


@pytest.fixture
def taught(coloured_run) -> Path:
    """model.safetensors of a run of its own."""
    context = coloured_run("first", evaluate=REAL, train={"steps": 4})
    train.run(context)
    return context.folder.path("train/real/seed-0/model.safetensors")


def swap_splits(context) -> None:
    with context.folder.transaction() as db:
        db.execute(
            "UPDATE real SET split = CASE split WHEN 'train' THEN 'test' WHEN 'test' THEN 'train' ELSE split END"
        )


def test_a_classifier_says_which_images_it_has_learned_from(taught: Path, coloured_run) -> None:
    images = coloured_run("first").folder.real_images("train")
    assert seen_by(taught) == marks(image.sha256 for image in images) and len(images) == 15


def test_a_classifier_that_saw_test_images_is_refused_as_pretrained_weights(taught: Path, coloured_run) -> None:
    context = coloured_run("second", evaluate=REAL, train={"steps": 4, "pretrained": str(taught)})
    assert not any("may have seen test images" in line for line in train.run(context)["warnings"])
    swap_splits(context)
    with pytest.raises(DataError, match="has learned from 15 images that are validation or test images here"):
        train.run(context)
    held_out = {image.sha256 for image in context.folder.real_images() if image.split != "train"}
    with pytest.raises(DataError, match="train.pretrained"):  # and before anything is drawn
        train.check(context.recipe, context.folder.classes(), held_out)


def test_weights_that_do_not_tell_are_used_and_the_user_is_told(taught: Path, coloured_run, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file(load_file(taught), tmp_path / "plain.safetensors")
    assert seen_by(tmp_path / "plain.safetensors") is None
    settings = {"steps": 4, "pretrained": str(tmp_path / "plain.safetensors")}
    summary = train.run(coloured_run("third", evaluate=REAL, train=settings))
    assert any("does not tell which images it was made from" in line for line in summary["warnings"])
    assert seen_by(tmp_path / "third/train/real/seed-0/model.safetensors") is None, "so it cannot tell either"


def test_what_weights_had_seen_before_is_told_on(taught: Path, coloured_run, tmp_path: Path) -> None:
    context = coloured_run("second", evaluate=REAL, train={"steps": 4, "pretrained": str(taught)})
    with context.folder.transaction() as db:  # other training images than those the weights come from
        db.execute("UPDATE real SET sha256 = 'ab' || substr(sha256, 3) WHERE split = 'train'")
    own = marks(image.sha256 for image in context.folder.real_images("train"))
    train.run(context)
    told = seen_by(tmp_path / "second/train/real/seed-0/model.safetensors")
    assert told == sorted({*own, *(seen_by(taught) or [])}) and len(told) == 30


def test_an_encoder_made_from_such_a_classifier_is_refused(taught: Path, coloured_run, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    shutil.copy(taught, tmp_path / "encoder/model.safetensors")
    (tmp_path / "encoder/config.json").write_text("{}")
    context = coloured_run("fourth", curate=[{"score": "class-agreement", "encoder": f"timm:{tmp_path / 'encoder'}"}])
    held_out = {image.sha256 for image in context.folder.real_images() if image.split != "train"}
    curate.check(context.recipe, held_out)
    swap_splits(context)
    with pytest.raises(RecipeError, match=r"curate.0.encoder: encoder has learned from 15 images"):
        curate.run(context)
    with pytest.raises(ModelError, match=r"encoder has learned from 15 images that are validation or test images"):
        measure_quality(context.folder.root, f"timm:{tmp_path / 'encoder'}")


def test_near_duplicates_of_test_images_in_a_pool_are_told(coloured_run) -> None:
    from PIL import Image

    from variegate.images import load_rgb

    other, context = (
        coloured_run("other"),
        coloured_run("run", evaluate=REAL | {"arms": ["real+synthetic"]}, train={"steps": 2}),
    )
    test = context.folder.real_images("test")[0]
    first = other.folder.synthetic_images()[0]
    pixels = load_rgb(Path(test.path))
    bigger = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
    import numpy as np

    other.folder.write(first.path, encode_image(np.asarray(bigger)[:, ::-1].copy(), "png"))
    recipe = context.recipe.model_copy(
        update={"train": context.recipe.train.model_copy(update={"pools": [str(other.folder.root)]})}
    )
    summary = train.run(type(context)(recipe, context.folder, context.reporter))
    (line,) = [line for line in summary["warnings"] if "nearly the same picture" in line]
    assert line.startswith("1 images of or behind") and f"{Path(first.path).name} ~ {Path(test.path).name}" in line
