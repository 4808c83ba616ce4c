"""The refine stage on a small run: files, table, labels; the same bytes after loss, kill, and with more workers."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build_clip

from variegate.errors import MissingExtra, RecipeError
from variegate.images import encode_image, load_rgb, load_square
from variegate.pipeline import Context
from variegate.records import soft_label
from variegate.stages.refine import stage
from variegate.stages.refine.batch import mix
from variegate.store import drawn_path

CONCAT = {"op": "concat", "orientation": "horizontal", "seam": 0.0}
ALL_BUT_CLIP = [{"op": "concat", "first": "random"}, {"op": "patches"}, {"op": "fractal", "weight": [0.1, 0.3]}]


def hashes(context: Context) -> dict[str, str]:
    root = context.folder.root
    files = (path for path in sorted((root / "synthetic").rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def table(context: Context) -> list[dict]:
    return [json.loads(line) for line in context.folder.path("synthetic/train/metadata.jsonl").read_text().splitlines()]


def test_each_image_is_the_blend_of_the_lossless_drawn_one_and_its_original_and_jpeg_once(drawn_run) -> None:
    context = drawn_run([CONCAT])
    summary = stage.run(context)
    assert summary["line"].startswith("18 images refined (concat) in")
    assert summary["line"].endswith("50 % of their pixels are the originals'")
    folder, classes = context.folder, context.folder.classes()
    real = {image.id: Path(image.path) for image in folder.real_images("train")}
    left = np.zeros((16, 16, 1), np.float32)
    left[:, :8] = 1.0
    images = folder.synthetic_images()
    assert len(images) == 18
    for image in images:
        drawn = load_rgb(folder.path(drawn_path(classes[image.target], image.id)))
        expected = mix(drawn, load_square(real[image.source], 16), left)
        assert folder.path(image.path).read_bytes() == encode_image(expected, "jpg")


def test_labels_follow_the_share_of_each_class_in_the_picture(drawn_run) -> None:
    context = drawn_run([CONCAT])
    stage.run(context)
    images = {image.id: image for image in context.folder.synthetic_images()}
    for line in table(context):
        image = images[line["id"]]
        assert image.original_share == line["original_share"] == 0.5
        drawn = dict(soft_label(image.source_label, image.target, image.strength, gamma=0.5))
        told = {part["label"]: part["weight"] for part in line["soft_label"]}
        assert told[image.target] == pytest.approx(0.5 * drawn[image.target])
        assert sum(told.values()) == pytest.approx(1.0)


def test_the_classifier_and_the_dataset_are_told_the_same_labels(drawn_run) -> None:
    from variegate import SyntheticDataset
    from variegate.classifier.labels import soft_targets

    context = drawn_run([{"op": "patches", "coverage": 0.25}])
    stage.run(context)
    images = context.folder.synthetic_images()
    rows = soft_targets(images, 3, gamma=0.5, kappa=1.0)
    expected = {line["id"]: {part["label"]: part["weight"] for part in line["soft_label"]} for line in table(context)}
    for image, row in zip(images, rows, strict=True):
        assert image.original_share == pytest.approx(0.75, abs=0.03)
        assert dict(enumerate(row)) == pytest.approx({label: expected[image.id].get(label, 0.0) for label in range(3)})
    assert (SyntheticDataset(context.folder.root).targets.numpy() == rows).all()


def test_a_source_of_the_same_class_leaves_the_label_alone(drawn_run) -> None:
    context = drawn_run([CONCAT], is_same_class=True)
    stage.run(context)
    assert all(line["soft_label"] == [{"label": line["label"], "weight": 1.0}] for line in table(context))


def test_two_workers_and_a_stop_in_the_middle_end_with_the_same_bytes(
    drawn_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawn_run(ALL_BUT_CLIP, "whole")
    stage.run(whole)
    two = drawn_run(ALL_BUT_CLIP, "two")
    stage.run(replace(two, workers=2))
    assert hashes(two) == hashes(whole)

    stopped, record = drawn_run(ALL_BUT_CLIP, "stopped"), stage._record

    def stop_after_one(context: Context, result: object) -> None:
        record(context, result)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_record", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        stage.run(stopped)
    monkeypatch.undo()
    folder = stopped.folder
    assert len(folder.unrefined_chunks()) == 2
    assert len(folder.synthetic_images()) == 6, "an image counts when it is refined"
    unfinished = folder.path(folder.synthetic_images()[0].path).with_name(".x.jpg.1234.tmp")
    unfinished.write_bytes(b"half")
    summary = stage.run(stopped)
    assert summary["refined_now"] == 12 and "(6 were there already)" in summary["line"]
    assert hashes(stopped) == hashes(whole) and not unfinished.exists()


def test_a_lost_image_comes_back_with_the_same_bytes(drawn_run) -> None:
    context = drawn_run(ALL_BUT_CLIP)
    stage.run(context)
    before = hashes(context)
    assert stage.intact(context)
    context.folder.path(context.folder.synthetic_images()[7].path).unlink()
    assert not stage.intact(context)
    assert stage.run(context)["refined_now"] == 6
    assert hashes(context) == before and stage.intact(context)


def test_other_keys_make_all_images_anew(drawn_run) -> None:
    stage.run(drawn_run([CONCAT]))
    again = drawn_run([{**CONCAT, "orientation": "vertical"}])
    assert stage.run(again)["refined_now"] == 18


def test_without_operations_nothing_is_done(coloured_run) -> None:
    context = coloured_run(refine=[])
    assert stage.run(context) == {"line": "nothing to refine", "refined": 0}
    assert stage.inputs(context.recipe) == {} and stage.intact(context)
    assert len(context.folder.synthetic_images()) == 18


@pytest.mark.parametrize("kind", ["clip_folder", "transformers_clip_folder"])
def test_hybrid_blend_with_a_clip_model_from_a_folder(drawn_run, kind: str, request: pytest.FixtureRequest) -> None:
    step = {"op": "hybrid-blend", "encoder": f"clip:{request.getfixturevalue(kind)}", "mode": "binary"}
    context = drawn_run([step])
    stage.run(context)
    shares = {line["id"]: line["original_share"] for line in table(context)}
    black = {
        image.id for i, image in enumerate(context.folder.synthetic_images()) if i % 6 == 5
    }  # as conftest draws them
    assert all(shares[image_id] == 0.0 for image_id in black), "nothing to see, nothing to give back"
    assert all(0.05 < share < 0.6 for image_id, share in shares.items() if image_id not in black)
    before = hashes(context)
    context.folder.path(context.folder.synthetic_images()[0].path).unlink()
    stage.run(context)
    assert hashes(context) == before


def test_another_encoder_under_the_same_name_makes_the_images_anew(drawn_run, tmp_path: Path) -> None:
    folder = build_clip(tmp_path / "clip")
    context = drawn_run([{"op": "hybrid-blend", "encoder": f"clip:{folder}"}])
    stage.run(context)
    before = stage.found(context)
    build_clip(tmp_path / "other", seed=1)
    (tmp_path / "other" / "open_clip_model.safetensors").replace(folder / "open_clip_model.safetensors")
    assert stage.found(context) != before, "the pipeline asks this before it takes the stage as done"
    assert stage.run(context)["refined_now"] == 18


def test_encoders_that_are_not_there_are_all_named_before_anything_is_drawn(drawn_run) -> None:
    steps = [{"op": "hybrid-blend", "encoder": name} for name in ("dino", "clip:ViT-B-32/laion2b_s34b_b97k")]
    with pytest.raises(RecipeError) as caught:
        stage.check(drawn_run(steps).recipe)
    assert "refine.encoder: unknown encoder 'dino'" in str(caught.value)
    assert "did you mean clip:ViT-B-32/laion2b_s34b_b79k" in str(caught.value)


def test_a_dense_map_of_a_tower_without_dense_features_is_refused_before_anything_is_drawn(drawn_run) -> None:
    step = {"op": "hybrid-blend", "encoder": "clip:convnext_base/laion400m_s13b_b51k"}
    stage.check(drawn_run([step]).recipe)
    with pytest.raises(
        RecipeError, match=r"refine.encoder: .* without dense features — set the operation's map: patches"
    ):
        stage.check(drawn_run([{**step, "map": "dense"}]).recipe)


def test_without_open_clip_the_extra_is_named(drawn_run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtra, match=r"refine.encoder.*variegate\[clip\]"):
        stage.check(drawn_run([{"op": "hybrid-blend", "encoder": "clip:ViT-B-32/openai"}]).recipe)


def test_the_report_shows_each_image_before_and_after(drawn_run) -> None:
    from variegate.stages.report.stage import write_report

    context = drawn_run([CONCAT])
    stage.run(context)
    write_report(context.folder, None)
    page = context.folder.path("report.html").read_text()
    assert page.count("as drawn, before refining") == page.count('alt="drawn as') > 0
    assert "as it was refined" in page


def test_the_estimate_counts_the_time_of_the_operations(drawn_run, tiny_sd: Path) -> None:
    operations = [{"op": "concat"}, {"op": "fractal"}]
    context = drawn_run(operations)
    backend = context.recipe.backend.model_copy(update={"model": str(tiny_sd), "device": "cpu"})
    recipe, classes = context.recipe.model_copy(update={"backend": backend}), context.folder.classes()
    few, many = (stage.estimate(recipe, classes, count)["seconds"]["refine"] for count in (100, 1_000_000))
    assert 0 <= few < many and many > 100, "no less than a tenth of a millisecond an image"
    assert stage.estimate(recipe, classes, 100, measure=False) == {}
    assert stage.estimate(recipe.model_copy(update={"refine": []}), classes, 100) == {}
