"""Distilling: a one-step model learns what its adapted parent draws, can be stopped anywhere, and is refused where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import NAMES, file_bytes, learn, make_run, recipe_of, spec_of
from pydantic import ValidationError
from tiny_models import build_sd, build_sdxl

from variegate.backends.adapter import read_adapter
from variegate.backends.base import resolve_backend
from variegate.backends.diffusion import DiffusionBackend
from variegate.backends.folder import model_fingerprint
from variegate.comparison.shelf import Shelf
from variegate.errors import ModelError
from variegate.recipe import Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.adapt import distill, stage
from variegate.stages.adapt.learn import Course
from variegate.stages.adapt.material import training_fingerprint, training_spec
from variegate.stages.adapt.objective import clean_of, noised, target
from variegate.store import RunFolder

CLASSES = [ClassInfo(k, name, f"{k:04d}") for k, name in enumerate(NAMES)]


@pytest.fixture(autouse=True, scope="module")
def small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(distill, "PAIRS_PER_FILE", 6)
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the parent's shape with weights of its own."""
    return build_sd(tmp_path_factory.mktemp("student"), seed=5)


def distilled(student: Path, parent: Path, *, generate: dict | None = None, **adapt: object) -> Recipe:
    distill = {"pairs": 16, "steps": 12, "lr": 2e-2}
    changes = {"model": str(parent), "distill": distill, "evaluations": 2, "previews": 1, **adapt}
    return recipe_of(student, backend={"steps": 1, "guidance_scale": 1.0}, generate=generate, **changes)


@pytest.fixture(scope="module")
def undisturbed(tiny_sd: Path, student: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    root = tmp_path_factory.mktemp("distilled") / "run"
    with make_run(root) as folder:
        return root, learn(folder, distilled(student, tiny_sd))


def test_the_one_step_model_comes_nearer_to_what_its_parent_draws(
    undisturbed: tuple[Path, dict], student: Path
) -> None:
    root, summary = undisturbed
    scores = summary["distilled"]
    assert scores["held_out_last"] < 0.95 * scores["held_out_first"], "pairs that it has not learned from"
    assert "then distilled into" in summary["line"] and "from 16 pairs in 12 steps" in summary["line"]
    facts, parent = read_adapter(root / "adapt"), read_adapter(root / "adapt/parent")
    assert facts.base["fingerprint"] == model_fingerprint(student) != parent.base["fingerprint"]
    assert summary["steps"] == 4 + 12 and summary["parent"]["steps"] == 4
    lora = "pytorch_lora_weights.safetensors"
    assert (root / "adapt" / lora).read_bytes() != (root / "adapt/parent" / lora).read_bytes()


def test_more_pairs_do_not_teach_the_parent_again(
    undisturbed: tuple[Path, dict], tiny_sd: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(undisturbed[0], tmp_path / "run")
    monkeypatch.setattr(stage, "_first_lesson", lambda *_: pytest.fail("the parent is taught a second time"))
    with RunFolder.create(tmp_path / "run") as folder:
        summary = learn(folder, distilled(student, tiny_sd, distill={"pairs": 24, "steps": 12, "lr": 2e-2}))
    assert "from 24 pairs" in summary["line"]
    assert file_bytes(tmp_path / "run") != file_bytes(undisturbed[0])


def test_variants_towards_other_classes_begin_at_any_class(tiny_sd: Path, student: Path, tmp_path: Path) -> None:
    generate = {"method": "diff-mix", "strength": [0.5, 1.0]}
    with make_run(tmp_path / "run") as folder:
        summary = learn(folder, distilled(student, tiny_sd, generate=generate, previews=0))
    assert summary["distilled"]["held_out_last"] < summary["distilled"]["held_out_first"]


def test_the_parent_learns_and_draws_at_the_size_of_the_model_that_will_draw(
    student: Path, tiny_sd: Path, tmp_path: Path
) -> None:
    """SD-Turbo draws 512 px and the model it was made from 768."""
    parent = shutil.copytree(tiny_sd, tmp_path / "parent")
    config = json.loads((parent / "unet/config.json").read_text())
    (parent / "unet/config.json").write_text(json.dumps(config | {"sample_size": 2 * config["sample_size"]}))
    recipe = distilled(student, parent)
    assert training_spec(recipe).size_px == resolve_backend(recipe.backend).size_px == 32


def test_pairs_begun_elsewhere_are_another_lesson(student: Path, tiny_sd: Path, tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as folder:
        own = {"method": "diff-aug", "strength": [0.5]}
        learn(folder, distilled(student, tiny_sd, generate=own, previews=0))
        before = file_bytes(tmp_path / "run")
        learn(folder, distilled(student, tiny_sd, generate={**own, "method": "diff-mix"}, previews=0))
    assert file_bytes(tmp_path / "run") != before


def test_it_draws_in_one_step_with_the_finished_adapter(undisturbed: tuple[Path, dict], student: Path) -> None:
    adapter = undisturbed[0] / "adapt"
    stage.check(recipe_of(student, method="file", path=str(adapter)), CLASSES)
    with DiffusionBackend.open(spec_of(student, adapter, steps=1)) as backend:
        drawn = backend.draw(["a photo of a <class_1>"], None, strengths=[1.0], steps=1, seeds=[4])
    assert drawn.shape == (1, 32, 32, 3)


@pytest.mark.parametrize("stop", ["while pairs are drawn", "before the second lesson"])
def test_stopped_anywhere_it_ends_with_the_same_adapter(
    undisturbed: tuple[Path, dict],
    tiny_sd: Path,
    student: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
) -> None:
    with make_run(tmp_path / "run") as folder:
        with monkeypatch.context() as patched:
            original, calls = (distill._draw, Course.run), []

            def stops(*values: object) -> object:
                calls.append(values)
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return original[stop == "before the second lesson"](*values)

            if stop == "while pairs are drawn":
                patched.setattr(distill, "_draw", stops)
            else:
                patched.setattr(Course, "run", stops)
            with pytest.raises(KeyboardInterrupt):
                learn(folder, distilled(student, tiny_sd))
            assert not (folder.root / "adapt/adapter.json").exists() and len(calls) == 2
        taught = []
        monkeypatch.setattr(stage, "_first_lesson", lambda *_: taught.append(1))
        learn(folder, distilled(student, tiny_sd))
        assert not taught, "the parent's lesson is not learned again"
    assert file_bytes(tmp_path / "run") == file_bytes(undisturbed[0])


def test_pairs_of_variants_start_from_noised_images_and_classes_come_equally_often(
    tiny_sd: Path, tmp_path: Path
) -> None:
    sources = torch.full((4, 4, 8, 8), 3.0)
    with DiffusionBackend.open(spec_of(tiny_sd, steps=4, scheduler="ddim")) as parent:
        captions = ["a cat", "a dog", "a cat", "a dog"]
        views, held_out = distill.draw_pairs(parent, sources, captions, (0.5,), tmp_path, flip=True, seed=0)
        kept = parent.signal(499)
        assert views.times is not None and views.starts is not None and set(views.times.tolist()) == {499}
        noise = (views.starts[:, 0].float() - kept**0.5 * 3.0) / (1 - kept) ** 0.5
        assert abs(float(noise.mean())) < 0.2 and abs(float(noise.std()) - 1) < 0.2, "noise of unit deviation"
        assert torch.equal(views.starts[:, 1], views.starts[:, 0].flip(-1)), "a pair is mirrored as a whole"
        assert torch.equal(views.latents[:, 1], views.latents[:, 0].flip(-1))
        again, _ = distill.draw_pairs(parent, sources, captions, (0.5,), tmp_path, flip=False, seed=0)
        assert again.latents.shape[1] == 1 and torch.equal(again.latents[:, 0], views.latents[:, 0])
    assert len(views) == 4 and len(held_out) == 0
    dealt = distill.deal([0] * 9 + [1], 40, seed=1)
    assert np.bincount(np.array([0] * 9 + [1])[dealt]).tolist() == [20, 20]


def test_places_are_dealt_to_every_class(tiny_sd: Path, student: Path) -> None:
    recipe = distilled(student, tiny_sd)
    prompts = {"text": "a {name}, {environment}", "environments": "groups"}
    recipe = Recipe.model_validate(recipe.model_dump() | {"prompts": prompts})
    images = [RealImage(str(k), "", k % 2, "train", group=("wood", "meadow")[k % 2]) for k in range(64)]
    told = distill.pair_captions(recipe, CLASSES, images, ["<class_0>", "<class_1>", "<class_2>"], seed=0)
    assert set(told) == {f"a <class_{k}>, {place}" for k in (0, 1) for place in ("wood", "meadow")}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_clean_image_is_found_back_from_what_the_model_is_asked_for(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))
    kept = torch.tensor([0.9, 0.5, 0.05])
    noisy = noised(clean, noise, kept)
    assert torch.allclose(clean_of(kind, target(kind, clean, noise, kept), noisy, kept), clean, atol=1e-5)


def test_previews_are_the_one_step_models_and_losses_the_parents(undisturbed: tuple[Path, dict]) -> None:
    root, summary = undisturbed
    assert summary["preview"] == "adapt/preview.png"
    assert (root / "adapt/preview.png").read_bytes() == (root / "adapt/preview-000012.png").read_bytes()
    assert summary["scores"]["held_out_last"] == summary["parent"]["scores"]["held_out_last"]
    assert summary["scores"]["preview_images"] == summary["distilled"]["preview_images"] == 9


def test_recipes_that_share_what_was_distilled_take_it_for_the_model_that_draws(
    tiny_sd: Path, student: Path, tmp_path: Path
) -> None:
    recipe = distilled(student, tiny_sd)
    shelf = Shelf(tmp_path)
    folder = shelf.folder(recipe)
    assert folder is not None and folder != shelf.folder(distilled(student, tiny_sd, distill={"pairs": 8, "steps": 12}))
    (folder / "adapt").mkdir(parents=True)
    (folder / "adapt/adapter.json").write_text("{}")
    taken = shelf.taught(recipe)
    assert (taken.adapt.method, taken.adapt.model, taken.adapt.distill.pairs) == ("file", None, 0)
    assert training_fingerprint(taken) == model_fingerprint(student)


# ------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize("changes", [{"model": None}, {"method": "tokens"}])
def test_without_a_parent_or_a_lora_there_is_nothing_to_distil(tiny_sd: Path, student: Path, changes: dict) -> None:
    with pytest.raises(ValidationError, match="distill teaches a one-step model what its adapted parent draws"):
        distilled(student, tiny_sd, **changes)


def test_a_model_that_draws_in_many_steps_is_not_taught_to_jump(tiny_sd: Path, student: Path) -> None:
    recipe = distilled(student, tiny_sd)
    recipe = recipe.model_copy(update={"backend": recipe.backend.model_copy(update={"steps": 4})})
    with pytest.raises(ModelError, match=r"adapt\.distill: teaches a one-step model, and .* is to draw in 4 steps"):
        stage.check(recipe, CLASSES)


def test_a_parent_of_another_shape(tiny_sd: Path, tmp_path: Path) -> None:
    other = build_sdxl(tmp_path / "xl")
    with pytest.raises(ModelError, match=r"differ in shape, so a LoRA cannot pass from one to the other"):
        stage.check(distilled(other, tiny_sd), CLASSES)


def test_the_log_of_both_lessons_is_kept(undisturbed: tuple[Path, dict]) -> None:
    root, _ = undisturbed
    own, parents = ([json.loads(line) for line in (root / f"adapt/{name}log.jsonl").read_text().splitlines()]
                    for name in ("", "parent/"))  # fmt: skip
    assert [line["step"] for line in own] == [0, 6, 12] and [line["step"] for line in parents] == [0, 2, 4]
