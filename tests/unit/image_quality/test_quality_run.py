"""quality.json of a small run: what it says, what it refuses to say, and who reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import clip_folder, tiny_sd, transformers_clip_folder  # noqa: F401 - fixtures

import variegate
from variegate.cli import run_cli
from variegate.copies import alter
from variegate.encoders import check_encoder, open_encoder
from variegate.errors import DataError, ModelError
from variegate.image_quality.run import LEAST_REFERENCE, compare, halves
from variegate.images import encode_image, load_squares
from variegate.recipe import Recipe
from variegate.stages.curate import stage as curate


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small timm network with random weights, as save_for_hf writes it."""
    import timm
    import torch
    from timm.models import save_for_hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = timm.create_model("resnet10t", num_classes=3, pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    folder = tmp_path_factory.mktemp("timm")
    save_for_hf(net, str(folder), safe_serialization=True)
    return folder


@pytest.fixture
def finished(coloured_run):
    """A run whose second image of each class is an altered copy: of its source, and of another training image."""
    context = coloured_run()
    folder = context.folder
    train = {image.id: image for image in folder.real_images("train")}
    rng = np.random.default_rng(0)
    planted = {}
    for label in range(3):
        own = [image for image in folder.synthetic_images(kept_only=False) if image.target == label][1]
        others = sorted((i for i in train if i != own.source and train[i].label == label), key=str)
        of = own.source if label == 0 else others[0]
        pixels = load_squares([Path(train[of].path)], 64)[0]
        folder.write(own.path, encode_image(alter(pixels, rng), "png"))
        planted[own.id] = of
    return context, planted


def quality(context, encoder: str) -> dict:
    found = variegate.measure_quality(context.folder.root, encoder)
    assert found == json.loads(context.folder.path("quality.json").read_text())
    return found


def test_every_measure_is_there_beside_its_floor_and_planted_copies_are_listed(finished, timm_folder: Path) -> None:
    context, planted = finished
    found = quality(context, f"timm:{timm_folder}")
    assert found["encoder"] == f"timm:{timm_folder}"
    assert found["images"] == {"kept": 18, "measured": 18, "reference": 48}
    measured = found["overall"]["measures"]
    assert measured["compared"] == 18 and measured["against"] == 24
    for name in ("frechet", "kid", "precision", "recall", "density", "coverage", "vendi"):
        assert np.isfinite([measured[name]["synthetic"], measured[name]["real"]]).all()
    assert measured["frechet"]["synthetic"] > measured["frechet"]["real"], "three of the 18 are black, three are copies"
    assert found["overall"]["diversity"]["real"] > 0
    assert {row["measures"] for row in found["per_class"]} == {None}, "16 real images of a class are too few"
    assert all(row["diversity"]["synthetic"] > 0 for row in found["per_class"])
    copies = found["copies"]
    assert {one["id"]: one["of"] for one in copies["list"]} == planted
    assert (copies["of_source"], copies["of_other"], copies["images"]) == (1, 2, 18)
    assert [row["copies"] for row in copies["per_class"]] == [1, 1, 1]


def test_every_kind_of_encoder_tells_what_its_layers_see_and_where(
    timm_folder: Path,
    clip_folder: Path,  # noqa: F811
    transformers_clip_folder: Path,  # noqa: F811
    tiny_sd: Path,  # noqa: F811
) -> None:
    """A square in one corner changes every layer's maps, those of the first one of an image tower there most."""
    names = ["auto", f"timm:{timm_folder}", f"clip:{clip_folder}", f"clip:{transformers_clip_folder}", "clip:starter"]
    recipe = Recipe(backend={"model": str(tiny_sd), "guidance_scale": 1.0})
    for name in names:
        with open_encoder(name, recipe) as encoder:
            edge = encoder.size_px
            pixels = np.random.default_rng(0).integers(0, 256, (2, edge, edge, 3), dtype=np.uint8)
            pixels[1] = pixels[0]
            pixels[1, -edge // 4 :, -edge // 4 :] = 255
            maps = encoder.maps(pixels)
            assert len(maps) > 1 and all(layer.ndim == 4 and len(layer) == 2 for layer in maps), name
            assert all(layer.dtype == np.float32 and np.isfinite(layer).all() for layer in maps), name
            changed = [np.abs(layer[0] - layer[1]).max(axis=0) for layer in maps]
            assert all(one.max() > 0 for one in changed), name
            if name != "auto":  # the U-Net has looked everywhere before its first up block
                side = round(changed[0].size ** 0.5)
                where = np.unravel_index(changed[0].argmax(), (side, side))
                assert min(where) >= side // 2, name


def test_the_same_run_gives_the_same_numbers(finished, timm_folder: Path) -> None:
    context, _ = finished
    assert quality(context, f"timm:{timm_folder}") == quality(context, f"timm:{timm_folder}")


def test_too_few_held_out_images_are_said_and_not_measured(coloured_run, timm_folder: Path) -> None:
    context = coloured_run(splits={"train": 5, "val": 1, "test": 2})
    found = quality(context, f"timm:{timm_folder}")
    assert found["overall"]["measures"] is None
    assert any("9 validation and test images are too few" in note for note in found["notes"])


def test_copies_are_dropped_or_weighed_by_curate(finished) -> None:
    context, planted = finished
    changed = context.recipe.model_validate(context.recipe.model_dump() | {"curate": [{"score": "copy"}]})
    summary = curate.run(type(context)(changed, context.folder, context.reporter))
    images = context.folder.synthetic_images(kept_only=False)
    assert {image.id for image in images if image.reason == "copy" and image.action == "drop"} == set(planted)
    assert summary["dropped"] == {"copy": 3}
    scores = context.folder.scores("copy")
    assert max(scores[one] for one in planted) < min(value for one, value in scores.items() if one not in planted)

    keys = {"score": "copy", "policy": "weight", "of_sources": False}
    changed = context.recipe.model_validate(context.recipe.model_dump() | {"curate": [keys]})
    curate.run(type(context)(changed, context.folder, context.reporter))
    weights = {image.id: image.weight for image in context.folder.synthetic_images()}
    low = {one for one, weight in weights.items() if weight < 1.0}
    assert low == {one for one, of in planted.items() if of != source_of(images, one)}
    assert max(weights[one] for one in low) < 0.9


def source_of(images, image_id: str) -> str | None:
    return next(image.source for image in images if image.id == image_id)


def test_idle_keys_of_the_copy_score_are_refused(coloured_run) -> None:
    for keys in ({"encoder": "clip:starter"}, {"drop_fraction": 0.5}, {"against": "a"}):
        with pytest.raises(Exception, match="has no effect on copy"):
            curate.check(coloured_run("x", curate=[{"score": "copy", **keys}]).recipe)
    with pytest.raises(Exception, match="has no effect on class-agreement"):
        curate.check(coloured_run("x", curate=[{"score": "class-agreement", "of_sources": False}]).recipe)


def test_the_report_and_the_card_show_what_was_measured(finished, timm_folder: Path, capsys) -> None:
    from variegate.stages.report.stage import write_report

    context, planted = finished
    folder = context.folder
    write_report(folder)
    assert run_cli(["quality", str(folder.root), "--encoder", f"timm:{timm_folder}"]) == 0
    said = capsys.readouterr().out
    assert "copies          3 of 18 images" in said and str(folder.path("quality.json")) in said
    page = folder.path("report.html").read_text()
    assert "3 of 18 drawn images are nearly training images" in page and "Fréchet distance" in page
    assert page.count('class="pair"') == 3 and "file missing" not in page
    assert "3 of 18 (1 of their source, 2 of another)" in folder.path("report.md").read_text()
    card = folder.path("synthetic/README.md").read_text()
    assert "3 of 18 drawn images are near copies" in card and str(timm_folder.parent) not in card
    folder.put_decisions("human", [(next(iter(planted)), "drop", 0.0, "a copy")])
    write_report(folder)
    assert "other images than are kept now" in folder.path("report.html").read_text()


def test_encoders_that_cannot_be_used_are_refused_by_name(coloured_run, tmp_path: Path, capsys) -> None:
    context = coloured_run()
    assert run_cli(["quality", str(context.folder.root), "--encoder", "timm:resnet18000"]) == 2
    assert "did you mean timm:resnet" in capsys.readouterr().err
    with pytest.raises(ModelError, match="the classifier is what is evaluated"):
        variegate.measure_quality(context.folder.root, "classifier")
    (tmp_path / "empty").mkdir()
    lacks = check_encoder(f"timm:{tmp_path / 'empty'}")
    assert [problem.what for problem in lacks] == ["has no config.json", "has no model.safetensors"]
    assert "unknown encoder" in check_encoder("inception")[0].what


def test_a_run_without_kept_images_is_refused(coloured_run) -> None:
    context = coloured_run(drawn=1)
    with context.folder.transaction() as db:
        db.execute("UPDATE chunks SET state = 'pending'")
    with pytest.raises(DataError, match="no kept synthetic image"):
        variegate.measure_quality(context.folder.root, "clip:starter")


def test_timm_features_follow_the_pixels(coloured_run, timm_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    with open_encoder(f"timm:{timm_folder}", coloured_run().recipe) as encoder:
        assert encoder.size_px == 32
        found = encoder.features(pixels)
        assert found.shape == (40, 512)
        assert np.abs(encoder.features(pixels[35:36])[0] - found[35]).max() < 1e-4


def test_halves_keep_groups_together_and_classes_even() -> None:
    labels = np.repeat([0, 1, 2], 20)
    units = [f"animal {k // 2}" for k in range(60)]
    one, other = halves(labels, units, np.random.default_rng(0))
    assert sorted([*one, *other]) == list(range(60)) and len(one) == len(other) == 30
    assert not {units[k] for k in one} & {units[k] for k in other}
    assert np.abs(np.bincount(labels[one]) - 10).max() <= 2


def test_images_of_the_references_own_kind_reach_the_floor() -> None:
    rng = np.random.default_rng(1)
    real, made, worse = rng.normal(size=(200, 8)), rng.normal(size=(150, 8)), rng.normal(size=(150, 8)) * 0.3 + 1
    labels, units = np.zeros(200, np.int64), [str(k) for k in range(200)]
    same, off = (compare(one, real, labels, units, 0) for one in (made, worse))
    assert same["compared"] == 100
    for name in ("frechet", "precision", "recall", "coverage", "vendi"):
        assert same[name]["synthetic"] == pytest.approx(same[name]["real"], rel=0.15)
    assert off["frechet"]["synthetic"] > 5 * off["frechet"]["real"] and off["recall"]["synthetic"] < 0.5
    assert compare(made, real[: LEAST_REFERENCE - 1], labels, units, 0) is None
