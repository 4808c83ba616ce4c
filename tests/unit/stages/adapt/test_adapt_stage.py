"""The stage: what an adapter depends on, going on after a stop, taking one that exists, refusing what does not fit."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from adapting import NAMES, file_bytes, learn, make_run, put_bytes, recipe_of, same, weights
from pydantic import ValidationError

from variegate import pipeline
from variegate.backends.adapter import read_adapter
from variegate.backends.tokenizers import load_tokenizers
from variegate.captions import captions_of
from variegate.errors import DataError, ModelError, RunFolderError, TaskFailed
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe import AdaptSection, GenerateSection, PromptsSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.adapt import learn as learning
from variegate.stages.adapt import stage
from variegate.stages.adapt.checkpoints import FOLDER
from variegate.stages.adapt.fit import Fit
from variegate.stages.adapt.stage import training_spec
from variegate.store import RunFolder

Make = Callable[..., RunFolder]


@pytest.fixture
def opened(tmp_path: Path):  # noqa: ANN201
    """Open runs by name; closed at the end."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda name="run", **options: stack.enter_context(make_run(tmp_path / name, **options))


@pytest.fixture(scope="module")
def finished(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One adapted run, with everything on."""
    root = tmp_path_factory.mktemp("finished") / "run"
    with make_run(root) as folder:
        summary = learn(folder, full(tiny_sd, previews=2, evaluations=3))
        folder.write("summary.json", json.dumps(summary))
    return root


@pytest.fixture(scope="module")
def plain(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, only learned: its checkpoints are those of `full` as it is."""
    root = tmp_path_factory.mktemp("plain") / "run"
    with make_run(root) as folder:
        learn(folder, full(tiny_sd))
    return root


def full(model: Path, /, **changes: object) -> Recipe:
    """Previews and held-out losses are only looked at: the weights are the same without."""
    return recipe_of(model, **{"vectors": 2, "steps": 6, "checkpoints": 6, **changes})


def lines(folder: RunFolder) -> list[str]:
    found = [json.loads(line) for line in (folder.root / "events.jsonl").read_text().splitlines()]
    return [event["text"] for event in found if event["event"] == "line"]


# ------------------------------------------------------------------------------------------ what it leaves


def test_adapter_json_says_what_it_was_made_from(tiny_sd: Path, finished: Path) -> None:
    from variegate.backends.folder import model_fingerprint

    facts = read_adapter(finished / "adapt")
    assert facts.classes == NAMES and facts.placeholders == ("<class_0>", "<class_1>", "<class_2>")
    assert (facts.method, facts.vectors, facts.format) == ("tokens+lora", 2, 1)
    assert facts.base["fingerprint"] == model_fingerprint(tiny_sd) and facts.base["model"] == str(tiny_sd)
    assert facts.data and facts.splits and facts.data != facts.splits
    assert facts.recipe["adapt"]["steps"] == 6 and facts.recipe["seed"] == 0
    assert {"variegate", "torch", "diffusers", "peft", "transformers"} <= set(facts.versions)
    assert facts.scores["held_out_first"] > 0 and "preview_copies" in facts.scores


@pytest.mark.parametrize(("joint", "each"), [(True, 9), (False, 3)])
def test_steps_left_open_follow_the_number_of_images(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joint: bool, each: int
) -> None:
    monkeypatch.setattr("variegate.recipe.VIEWS_PER_IMAGE", 4)
    monkeypatch.setattr("variegate.recipe.LEAST_VIEWS", 1)
    recipe = recipe_of(tiny_sd, method="tokens", joint=joint, steps=None, batch=4, previews=0)
    with make_run(tmp_path / "run", splits={"train": 3, "test": 1}) as folder:
        assert learn(folder, recipe)["steps"] == 9
    assert read_adapter(tmp_path / "run/adapt").recipe["adapt"]["steps"] == each


def test_previews_and_the_log_are_in_the_run_folder(finished: Path) -> None:
    from PIL import Image

    names = sorted(path.name for path in (finished / "adapt").glob("preview*.png"))
    assert names == ["preview-000003.png", "preview-000006.png", "preview.png"]
    assert (finished / "adapt/preview.png").read_bytes() == (finished / "adapt/preview-000006.png").read_bytes()
    with Image.open(finished / "adapt/preview.png") as page:
        assert page.size == (3 * 32 + 2 * 2, 3 * 32 + 2 * 2)
    log = [json.loads(line) for line in (finished / "adapt/log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 2, 4, 6]
    summary = json.loads((finished / "summary.json").read_text())
    assert "tokens+lora for 3 classes, 6 steps" in summary["line"] and "held-out loss" in summary["line"]
    assert summary["preview_columns"][1] == ["dog", "a photo of a <class_1>"] and summary["images_seen"] == 24


def test_nothing_is_learned_without_a_method(opened: Make) -> None:
    folder = opened()
    assert learn(folder, recipe_of("starter", method="none"))["method"] == "none"
    assert not (folder.root / "adapt").exists()


def test_one_image_in_a_class_is_enough(tiny_sd: Path, opened: Make) -> None:
    folder = opened(splits={"train": 1, "val": 0, "test": 0})
    summary = learn(folder, full(tiny_sd, crops=2))
    assert summary["images"] == 3 and "held-out" not in summary["line"]
    assert all(torch.isfinite(value).all() for value in weights(folder.root).values())


def test_sdxl_learns_tokens_for_both_encoders(tiny_sdxl: Path, opened: Make) -> None:
    folder = opened()
    learn(folder, recipe_of(tiny_sdxl, method="tokens"))
    assert sorted(file_bytes(folder.root)) == ["learned_embeds.safetensors", "learned_embeds_2.safetensors"]


def test_fp16_never_trains(tiny_sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an older GPU the backend draws in fp16; gradients would vanish there."""
    from variegate.stages.adapt import material

    resolve = material.resolve_backend
    monkeypatch.setattr(
        material, "resolve_backend", lambda section: replace(resolve(section), dtype="fp16", compile=True)
    )
    spec = training_spec(recipe_of(tiny_sd))
    assert spec.dtype == "fp32" and not spec.compile
    assert training_spec(recipe_of(tiny_sd, dtype="bf16")).dtype == "bf16"
    monkeypatch.undo()
    assert training_spec(recipe_of(tiny_sd, backend={"dtype": "bf16"})).dtype == "bf16"
    with pytest.raises(ValidationError, match="fp16"):
        AdaptSection(dtype="fp16")


# ------------------------------------------------------------------------------------------ what it depends on


def test_only_training_images_are_encoded_and_captioned(
    tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    encode, caption = learning.encode_views, stage.gather
    monkeypatch.setattr(learning, "encode_views", lambda backend, images, *rest, **more: asked.append(
        tuple(image.split for image in images)) or encode(backend, images, *rest, **more))  # fmt: skip
    gathered = []
    monkeypatch.setattr(stage, "gather", lambda *values: gathered.append(caption(*values)) or gathered[-1])
    folder = opened()
    learn(folder, full(tiny_sd, evaluations=3))
    assert asked == [("train",) * 9, ("val",) * 6], "validation images for the held-out loss only"
    [material] = gathered
    train = {image.id for image in folder.real_images("train")}
    assert {image.id for image in material.train} == train and len(material.captions) == 9
    assert not train & {image.id for image in material.held_out}


def test_test_images_are_not_even_opened(tiny_sd: Path, opened: Make) -> None:
    folder = opened()
    for image in folder.real_images():
        if image.split != "train":
            Path(image.path).unlink()
    learn(folder, full(tiny_sd))
    assert file_bytes(folder.root)


@pytest.mark.parametrize(("split", "matters"), [("test", False), ("val", False), ("train", True)])
def test_other_bytes_make_another_adapter_only_where_it_may_look(
    tiny_sd: Path, finished: Path, opened: Make, split: str, matters: bool
) -> None:
    folder = opened()
    put_bytes(folder, split)
    learn(folder, full(tiny_sd, evaluations=3))
    assert (file_bytes(folder.root) != file_bytes(finished)) == matters
    assert (read_adapter(folder.root / "adapt").data != read_adapter(finished / "adapt").data) == matters


def test_the_same_settings_give_the_same_files(finished: Path, plain: Path) -> None:
    """Also with previews and held-out losses in between."""
    assert file_bytes(plain) == file_bytes(finished)


CHANGES = {
    "class names": {"names": ("cat", "dog", "snow owl")},
    "seed": {"seed": 1},
    "prompt": {"prompts": {"text": "{name} in snow"}},
    "superclass": {"superclass": "dog"},
    "vectors": {"vectors": 1},
    "init": {"init": "random"},
    "model": {},
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_learned_is_reused_after_a_change(tiny_sd: Path, plain: Path, tmp_path: Path, change: str) -> None:
    """In the same run folder, where the old checkpoints lie: the adapter is that of a fresh folder with the new settings."""
    from tiny_models import build_sd

    values = dict(CHANGES[change])
    names = values.pop("names", NAMES)
    model = build_sd(tmp_path / "other-model", seed=1) if change == "model" else tiny_sd
    shutil.copytree(plain, tmp_path / "old")
    found = []
    for name in ("old", "fresh"):
        with make_run(tmp_path / name, names=names) as folder:
            learn(folder, full(model, **values))
            found.append(weights(folder.root))
    assert same(*found), "as if there had been nothing before"
    assert not same(found[0], weights(plain))


def test_the_stage_key_changes_with_what_matters(tiny_sd: Path) -> None:
    base = stage.inputs(full(tiny_sd))
    for values in ({"seed": 1}, {"prompts": {"text": "{name}"}}, {"superclass": "bird"}, {"lr": 0.5}, {"vectors": 3}):
        assert stage.inputs(full(tiny_sd, **values)) != base
    assert stage.inputs(full(tiny_sd, generate={"per_class": 7})) == base


def test_captions_are_the_recipes_own_prompts_with_the_superclass() -> None:
    classes = [ClassInfo(0, "song_thrush", "0", "a brown bird"), ClassInfo(1, "crow", "1")]
    images = [RealImage("a", "", 1, "train", group="wood", caption="on a branch"), RealImage("b", "", 0, "train")]
    recipe = Recipe(
        adapt=AdaptSection(method="tokens", superclass="bird"),
        prompts=PromptsSection(
            text=["a {name}, {environment}", "{name}: {description}", "{caption} {name}"], environments="groups"
        ),
        generate=GenerateSection(method="ti-aug"),
    )
    assert captions_of(recipe, classes, images, ["<class_0>", "<class_1>"]) == [
        ["a <class_1> bird, wood", "<class_1> bird: crow", "on a branch <class_1> bird"],
        ["a <class_0> bird", "<class_0> bird: a brown bird", "<class_0> bird"],
    ]
    listed = recipe.model_copy(
        update={"prompts": PromptsSection(text="{name}, {environment}", environments=["in snow"])}
    )
    assert captions_of(listed, classes, images, ["<class_0>", "<class_1>"])[0] == ["<class_1> bird"], "nobody knows it"


# ------------------------------------------------------------------------------------------ stopped and run again


class Stopped(BaseException):
    """As Ctrl-C or a lost machine."""


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Stop the next run after so many steps, counted over all groups of classes."""
    step, count = Fit._step, [0]

    def counted(self: Fit, number: int) -> float:
        if count[0] == steps:
            raise Stopped
        count[0] += 1
        return step(self, number)

    monkeypatch.setattr(Fit, "_step", counted)


@pytest.mark.parametrize("stop", [0, 1, 4, 5])
def test_stopped_anywhere_it_ends_with_the_same_files(
    tiny_sd: Path, finished: Path, opened: Make, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    folder, recipe = opened(), full(tiny_sd, evaluations=3)
    stop_after(monkeypatch, stop)
    with pytest.raises(Stopped):
        learn(folder, recipe)
    monkeypatch.undo()
    assert not (folder.root / "adapt/adapter.json").exists()
    summary = learn(folder, recipe)
    assert file_bytes(folder.root) == file_bytes(finished)
    assert (folder.root / "adapt/log.jsonl").read_bytes() == (finished / "adapt/log.jsonl").read_bytes()
    assert summary["steps"] == 6
    assert len(list((folder.root / FOLDER).iterdir())) == 2


def test_a_second_run_encodes_and_trains_nothing(tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, recipe = opened(), full(tiny_sd, prior={"images": 3}, evaluations=3)
    learn(folder, recipe)
    before = {path: path.stat().st_mtime_ns for path in (folder.root / "cache").rglob("*") if path.is_file()}
    wanted = file_bytes(folder.root)
    monkeypatch.setattr(Fit, "_step", lambda *_: pytest.fail("was trained already"))
    learn(folder, recipe)
    after = {path: path.stat().st_mtime_ns for path in (folder.root / "cache").rglob("*") if path.is_file()}
    assert after == before and len(before) == 3, "training, held-out and prior latents"
    assert file_bytes(folder.root) == wanted


def test_prior_images_are_drawn_once_and_change_the_result(tiny_sd: Path, finished: Path, opened: Make) -> None:
    from variegate.backends.diffusion import DiffusionBackend

    folder, drawn, original = opened(), [], DiffusionBackend.draw
    recipe = full(tiny_sd, prior={"images": 3, "text": "a photo of a dog"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiffusionBackend, "draw", lambda self, prompts, *rest, **more: drawn.extend(prompts) or original(
            self, prompts, *rest, **more))  # fmt: skip
        learn(folder, recipe)
        learn(folder, recipe.model_copy(update={"adapt": recipe.adapt.model_copy(update={"steps": 2})}))
    assert drawn == ["a photo of a dog"] * 3
    assert file_bytes(folder.root) != file_bytes(finished)


@pytest.mark.parametrize(
    ("superclass", "told"),
    [
        ("", ["a photo of a cat", "a photo of a dog", "a photo of a red owl", "a photo of a cat"]),
        ("owl", ["a photo of a owl"] * 4),
    ],
)
def test_prior_images_are_dealt_over_the_classes_own_words(
    tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch, superclass: str, told: list[str]
) -> None:
    """Never over the learned tokens: they are images of the model as it was."""
    from variegate.backends.diffusion import DiffusionBackend

    drawn, learned, original, init = [], [], DiffusionBackend.draw, Fit.__init__
    monkeypatch.setattr(DiffusionBackend, "draw", lambda self, prompts, *rest, **more: drawn.extend(prompts) or original(
        self, prompts, *rest, **more))  # fmt: skip
    monkeypatch.setattr(Fit, "__init__", lambda self, *values, **more: learned.extend(values[4].captions) or init(
        self, *values, **more))  # fmt: skip
    learn(opened(), full(tiny_sd, prior={"images": 4, "text": "a photo of a {name}"}, superclass=superclass, steps=1))
    assert drawn == told and learned == [[text] for text in told]


def test_a_damaged_cache_of_prior_images_is_drawn_again(tiny_sd: Path, opened: Make) -> None:
    folder, recipe = opened(), full(tiny_sd, prior={"images": 3}, steps=1)
    learn(folder, recipe)
    wanted = file_bytes(folder.root)
    shutil.rmtree(folder.root / FOLDER)
    for path in (folder.root / "cache/adapt").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    learn(folder, recipe)
    assert file_bytes(folder.root) == wanted


def test_a_damaged_checkpoint_is_said_and_the_one_before_used(
    tiny_sd: Path, finished: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = opened()
    stop_after(monkeypatch, 4)
    with pytest.raises(Stopped):
        learn(folder, full(tiny_sd))
    monkeypatch.undo()
    newest = sorted((folder.root / FOLDER).iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    learn(folder, full(tiny_sd))
    assert lines(folder) == [
        f"adapt: checkpoint {newest.name} is damaged (SafetensorError); going back to the one before it"
    ]
    assert file_bytes(folder.root) == file_bytes(finished)


def test_a_full_disk_during_a_checkpoint_is_explained_and_gone_on_from(
    tiny_sd: Path, finished: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from variegate.stages.adapt import checkpoints

    folder, write, count = opened(), checkpoints.write_atomic, [0]

    def full_disk(path: Path, data: bytes) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data)

    monkeypatch.setattr(checkpoints, "write_atomic", full_disk)
    with pytest.raises(RunFolderError, match="the disk is full — free some space, then run the same command again"):
        learn(folder, full(tiny_sd))
    monkeypatch.undo()
    assert len(list((folder.root / FOLDER).glob("step-*"))) == 2
    learn(folder, full(tiny_sd))
    assert file_bytes(folder.root) == file_bytes(finished)


def test_a_bad_loss_names_the_step_and_the_last_good_checkpoint(
    tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Fit._losses

    def sick(self: Fit, *values: object) -> torch.Tensor:
        is_sick = self.progress.step == 3 and torch.is_grad_enabled()
        return losses(self, *values) * (float("nan") if is_sick else 1.0)

    folder = opened()
    recipe = full(tiny_sd)
    monkeypatch.setattr(Fit, "_losses", sick)
    expected = r"adapt failed: the loss at step 3 is nan; lower adapt\.lr.*\(last good checkpoint: step-00000003\.safetensors\)"
    with pytest.raises(TaskFailed, match=expected):
        learn(folder, recipe)
    monkeypatch.undo()
    learn(folder, recipe)
    assert all(torch.isfinite(value).all() for value in weights(folder.root).values())


# ------------------------------------------------------------------------------------------ stopped early


def test_what_is_shown_and_said_after_an_early_stop_is_of_the_weights_that_are_kept(
    tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, shown = iter([1.0, 0.5, 0.7, 0.6]), []
    draw = learning.draw_preview
    monkeypatch.setattr(Fit, "held_out_loss", lambda self: next(told))
    monkeypatch.setattr(learning, "draw_preview", lambda trainee, plan: shown.append(
        trainee.learned_tokens()[0]["<class_0>"].clone()) or draw(trainee, plan))  # fmt: skip
    folder = opened()
    summary = learn(folder, full(tiny_sd, steps=8, evaluations=8, early_stop=2, previews=4))
    assert summary["steps"] == 3 and "held-out loss 1.0000 -> 0.5000, that of step 1, which is kept" in summary["line"]
    kept = weights(folder.root)["learned_embeds.safetensors/<class_0>"]
    assert torch.equal(shown[-1], kept) and not torch.equal(shown[0], kept)
    names = sorted(path.name for path in (folder.root / "adapt").glob("preview*.png"))
    assert names == ["preview-000001.png", "preview-000002.png", "preview.png"], "2: on the way, by its own step"
    assert (folder.root / "adapt/preview.png").read_bytes() == (folder.root / "adapt/preview-000001.png").read_bytes()
    assert read_adapter(folder.root / "adapt").scores["held_out_step"] == 1


def test_stopped_and_run_again_the_best_is_shown_as_well(
    tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fit, "held_out_loss", lambda self: 1.0 + abs(self.progress.step - 2))
    recipe = full(tiny_sd, evaluations=6, early_stop=9, previews=2)
    whole, folder = opened("whole"), opened()
    learn(whole, recipe)
    with monkeypatch.context() as patched:
        stop_after(patched, 4)
        with pytest.raises(Stopped):
            learn(folder, recipe)
    assert learn(folder, recipe)["scores"]["held_out_step"] == 2
    found = [{path.name: path.read_bytes() for path in (one.root / "adapt").glob("*.*")} for one in (whole, folder)]
    assert found[0] == found[1] and "preview-000002.png" in found[0]


def test_early_stop_without_a_validation_image_is_refused_before_anything_is_encoded(
    tiny_sd: Path, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "encode_views", lambda *_, **__: pytest.fail("encoded"))
    folder = opened(splits={"train": 2, "val": 0, "test": 1})
    with pytest.raises(
        DataError, match=r"adapt\.early_stop: watches the held-out loss and there is no validation image"
    ):
        learn(folder, full(tiny_sd, evaluations=2, early_stop=2))


# ------------------------------------------------------------------------------------------ each class alone


@pytest.fixture(scope="module")
def alone(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alone") / "run"
    with make_run(root) as folder:
        assert learn(folder, each(tiny_sd))["steps"] == 9
    return root


def each(model: Path, **changes: object) -> Recipe:
    return recipe_of(
        model, **{"method": "tokens", "joint": False, "vectors": 2, "steps": 3, "checkpoints": 3, "ema": 0.6, **changes}
    )


def test_a_class_of_its_own_run_leaves_the_others_alone(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    run = Fit.run

    def watched(self: Fit, *values: object, **more: object) -> None:
        seen.append(self.parameters["tokens.0"].detach().clone())
        run(self, *values, **more)
        seen.append(self.parameters["tokens.0"].detach().clone())

    monkeypatch.setattr(Fit, "run", watched)
    with make_run(tmp_path / "run") as folder:
        learn(folder, each(tiny_sd, checkpoints=1))
    assert len(seen) == 6
    for label in range(3):
        before, after = seen[2 * label], seen[2 * label + 1]
        changed = (before != after).any(dim=1).tolist()
        assert changed == [row // 2 == label for row in range(6)]


@pytest.mark.parametrize("stop", [2, 3, 4, 6, 8])
def test_stopped_in_a_later_class_it_ends_with_the_same_files(
    tiny_sd: Path, alone: Path, opened: Make, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """3 and 6: exactly between two classes, where the next one's optimiser must start anew."""
    folder = opened()
    stop_after(monkeypatch, stop)
    with pytest.raises(Stopped):
        learn(folder, each(tiny_sd))
    monkeypatch.undo()
    assert learn(folder, each(tiny_sd))["steps"] == 9
    assert file_bytes(folder.root) == file_bytes(alone)


def test_joint_and_alone_differ(tiny_sd: Path, alone: Path, opened: Make) -> None:
    folder = opened()
    learn(folder, each(tiny_sd, joint=True))
    assert file_bytes(folder.root) != file_bytes(alone)


# ------------------------------------------------------------------------------------------ an adapter that exists


def taken(model: Path, path: Path, **changes: object) -> Recipe:
    return recipe_of(model, method="file", path=str(path), **changes)


def test_an_adapter_of_another_run_is_taken_whole(tiny_sd: Path, finished: Path, opened: Make) -> None:
    folder = opened()
    recipe = taken(tiny_sd, finished / "adapt")
    stage.check(recipe, folder.classes())
    summary = learn(folder, recipe)
    assert file_bytes(folder.root) == file_bytes(finished)
    assert (folder.root / "adapt/adapter.json").read_bytes() == (finished / "adapt/adapter.json").read_bytes()
    assert "tokens+lora for 3 classes taken from adapt" in summary["line"] and summary["warnings"] == []
    assert set(folder.artefacts("adapt")) == {
        "adapter.json",
        "learned_embeds.safetensors",
        "pytorch_lora_weights.safetensors",
    }


def test_an_adapter_of_unknown_origin_is_taken_with_a_warning(
    tiny_sd: Path, finished: Path, tmp_path: Path, opened: Make
) -> None:
    edited(finished, tmp_path / "imported", splits="", data="", base={})
    summary = learn(opened(), taken(tiny_sd, tmp_path / "imported"))
    assert "may have seen test images" in summary["warnings"][0] and summary["warnings"][0] in summary["line"]


@pytest.mark.parametrize(("sure", "warned"), [(0.36, True), (0.55, False)])  # of 1/3 by chance and 0.9 on real images
def test_an_adapter_whose_previews_hardly_showed_their_class_is_taken_with_a_warning(
    tiny_sd: Path, finished: Path, tmp_path: Path, opened: Make, sure: float, warned: bool
) -> None:
    edited(finished, tmp_path / "copy", scores={"preview_agreement": sure, "judge_accuracy": 0.9})
    summary = learn(opened(), taken(tiny_sd, tmp_path / "copy"))
    assert ["hardly better than chance" in text for text in summary["warnings"]] == [True] * warned
    assert ("36 % sure, chance 33 %, real images 90 %" in summary["line"]) == warned


def test_other_weights_at_the_same_path_are_another_input(tiny_sd: Path, finished: Path, tmp_path: Path) -> None:
    edited(finished, tmp_path / "copy")
    before = stage.inputs(taken(tiny_sd, tmp_path / "copy"))
    change_weights(tmp_path / "copy/learned_embeds.safetensors")
    assert stage.inputs(taken(tiny_sd, tmp_path / "copy")) != before


def test_an_adapter_for_something_else_is_refused_with_every_difference(
    tiny_sd: Path, finished: Path, tmp_path: Path, opened: Make
) -> None:
    from tiny_models import build_sd

    other = build_sd(tmp_path / "other-model", seed=1)
    folder = opened(names=("cat", "dogs", "red_owl"))
    for refuse in (lambda recipe: stage.check(recipe, folder.classes()), lambda recipe: learn(folder, recipe)):
        with pytest.raises(ModelError, match="problems") as caught:
            refuse(taken(other, finished / "adapt"))
        text = str(caught.value)
        assert f"was made for {tiny_sd}" in text and "adapt again" in text
        assert "made for other classes: it knows dog; it lacks dogs ('dog' is now 'dogs'?)" in text
    assert not (folder.root / "adapt").exists()


def test_classes_in_another_order_are_refused(tiny_sd: Path, finished: Path, opened: Make) -> None:
    folder = opened(names=("dog", "cat", "red_owl"))
    with pytest.raises(ModelError, match="the same names in another order"):
        learn(folder, taken(tiny_sd, finished / "adapt"))


def test_an_adapter_of_another_split_is_refused(tiny_sd: Path, finished: Path, opened: Make) -> None:
    folder = opened(splits={"train": 4, "val": 1, "test": 2})
    with pytest.raises(
        ModelError, match="made on another split of the data: it may have seen this split's test images"
    ):
        learn(folder, taken(tiny_sd, finished / "adapt"))


def edited(run: Path, target: Path, **changes: object) -> Path:
    shutil.copytree(run / "adapt", target)
    path = target / "adapter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


def change_weights(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: value + 1 for name, value in load_file(path).items()}, path)


# ------------------------------------------------------------------------------------------ recipes that make no sense


@pytest.mark.parametrize(
    ("adapt", "generate", "said"),
    [
        ({"method": "none"}, {"method": "diff-mix"}, "draws with an adapter and adapt.method is none.*real-mix"),
        ({"method": "none"}, {"method": "ti-gen"}, "draws with an adapter and adapt.method is none.*real-gen"),
        ({"method": "lora"}, {"method": "ti-aug"}, "draws with learned tokens and adapt.method is lora; use diff-aug"),
        (
            {"method": "tokens"},
            {"method": "real-aug"},
            "draws with the model as it is.*use diff-aug or set adapt.method=none",
        ),
        ({"method": "lora"}, {"method": "diff-aug", "token_noise": {"std": [0.1]}}, "token_noise needs learned tokens"),
        ({"method": "none"}, {"method": "real-aug", "token_noise": {"std": [0.1]}}, "token_noise needs learned tokens"),
    ],
)
def test_strategies_and_adapters_that_do_not_go_together(adapt: dict, generate: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=f"(?s){said}"):
        Recipe.model_validate({"adapt": adapt, "generate": generate})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"method": "file"}, "method file and path go together"),
        ({"method": "tokens", "path": "x"}, "method file and path go together"),
        ({"method": "lora", "joint": False}, "joint: false is for method tokens"),
        ({"method": "tokens", "early_stop": 2, "evaluations": 0}, "early_stop watches the held-out loss"),
        ({"method": "tokens", "early_stop": 2, "joint": False}, "early_stop watches one held-out loss of all classes"),
        ({"method": "tokens", "prior": {"text": "a {caption}"}}, "uses unknown {caption}; known: name"),
        ({"method": "tokens", "prior": {"text": "a {name"}}, "unbalanced brace"),
        ({"method": "tokens", "init": "  "}, "init is empty"),
        ({"method": "tokens", "vectors": 0}, "greater than or equal to 1"),
    ],
)
def test_sections_that_make_no_sense(section: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AdaptSection(**section)


def test_masks_need_a_table_or_the_meadow(tiny_sd: Path) -> None:
    recipe = full(tiny_sd, mask="foreground", init="random")
    stage.check(recipe, [])
    digits = recipe.model_copy(update={"dataset": recipe.dataset.model_copy(update={"path": "builtin:digits"})})
    with pytest.raises(DataError, match=r"adapt\.mask: foreground needs a mask.*table with a mask column"):
        stage.check(digits, [])


def test_a_class_balanced_run_sees_small_classes_as_often(
    tiny_sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the stage: 1 / n^balance reaches the batches."""
    seen: list[int] = []
    losses = Fit._losses

    def counted(self: Fit, views, batch, *rest):  # noqa: ANN001, ANN002, ANN202
        if len(views) == 12 and torch.is_grad_enabled():
            seen.extend(labels[image] for image in batch.image)
        return losses(self, views, batch, *rest)

    monkeypatch.setattr(Fit, "_losses", counted)
    shares = {}
    for balance in (0.0, 1.0):
        with make_run(
            tmp_path / str(balance), names=("cat", "dog"), splits={"train": 6, "val": 0, "test": 0}
        ) as folder:
            images = sorted(folder.real_images("train"), key=lambda image: image.id)
            images = [RealImage(i.id, i.path, int(k < 2), "train", sha256=i.sha256) for k, i in enumerate(images)]
            folder.put_dataset(folder.classes(), images)
            labels = [image.label for image in images]
            seen.clear()
            learn(folder, recipe_of(tiny_sd, balance=balance, batch=12, steps=4))
            shares[balance] = np.mean(seen)
    assert shares[0.0] == pytest.approx(1 / 6, abs=0.05) and shares[1.0] == pytest.approx(1 / 2, abs=0.05)


def test_the_stage_runs_again_only_where_its_files_are_gone(
    tiny_sd: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are no part of the adapter; every file that is drawn with is."""
    root, ran, run = shutil.copytree(finished, tmp_path / "run"), [], stage.run
    monkeypatch.setattr(pipeline, "STAGES", ("adapt",))
    monkeypatch.setattr(stage, "run", lambda context: ran.append(1) or run(context))
    with RunFolder.create(root) as folder:
        context = Context(full(tiny_sd, previews=2, evaluations=3), folder, QuietReporter())
        pipeline.run_stages(context, "adapt")
        (root / "adapt/preview.png").unlink()
        pipeline.run_stages(context, "adapt")
        assert len(ran) == 1
        for count, name in enumerate(("adapter.json", *file_bytes(finished)), start=2):
            (root / "adapt" / name).unlink()
            pipeline.run_stages(context, "adapt")
            assert len(ran) == count and file_bytes(root) == file_bytes(finished)
            assert (root / "adapt/adapter.json").is_file()


def test_previews_of_an_earlier_adapter_are_not_taken_for_the_present_ones(tiny_sd: Path, tmp_path: Path) -> None:
    with make_run(tmp_path / "run") as folder:
        learn(folder, recipe_of(tiny_sd, previews=1))
        first = (folder.root / "adapt/preview.png").read_bytes()
        (folder.root / "adapt/preview_mine.png").write_bytes(b"the user's")
        learn(folder, recipe_of(tiny_sd, previews=1, seed=5))
        assert (folder.root / "adapt/preview.png").read_bytes() != first
        learn(folder, recipe_of(tiny_sd, previews=0, seed=6))
        assert [path.name for path in (folder.root / "adapt").glob("preview*")] == ["preview_mine.png"]


# ------------------------------------------------------------------------------------------ refused before anything slow


def check(recipe: Recipe, names: Sequence[str] = NAMES, descriptions: Sequence[str] = ("", "", "")) -> None:
    stage.check(recipe, [ClassInfo(k, *pair) for k, pair in enumerate(zip(names, "012", descriptions, strict=True))])


def test_captions_too_long_to_say_the_learned_tokens_are_refused(tiny_sd: Path, opened: Make) -> None:
    """The tiny model reads 16 tokens, the first and the last of them its own."""
    check(full(tiny_sd, vectors=4, prompts={"text": "a photo of a red {name}"}))
    with pytest.raises(ModelError, match=r"prompts\.text: in 3 of 3 captions learned tokens lie behind the first 16"):
        check(full(tiny_sd, vectors=12, prompts={"text": "a photo of a {name}"}))
    recipe = full(tiny_sd, prompts={"text": "{caption} {name}"})
    check(recipe)
    folder, long = opened(), "a red owl in the snow on a blue cat in the forest of the"
    put_captions(folder, long)
    with pytest.raises(DataError, match=r"in 9 of 12 captions learned tokens lie behind .*say {name} earlier"):
        learn(folder, recipe)
    assert not (folder.root / "adapt").exists()


def test_words_that_the_model_does_not_read_while_learning_are_warned_of(tiny_sd: Path, opened: Make) -> None:
    folder = opened()
    put_captions(folder, "a red owl in the snow on a blue cat in the forest of the")
    summary = learn(folder, full(tiny_sd, steps=1, prompts={"text": "{name} {caption}"}))
    [warning] = summary["warnings"]
    assert "the model reads only the first 16 tokens, for example '<class_1> a red owl" in warning
    assert warning in summary["line"]


def put_captions(folder: RunFolder, text: str) -> None:
    images = [
        replace(i, caption=f"{text} {i.split} {k}" if i.split == "train" else "cat")
        for k, i in enumerate(folder.real_images())
    ]
    folder.put_dataset(folder.classes(), images)


@pytest.mark.parametrize("method", ["lora", "tokens"])
def test_what_is_learned_on_a_model_of_another_shape_cannot_be_carried_over(
    tiny_sd: Path, tiny_sdxl: Path, method: str
) -> None:
    said = {
        "lora": "the U-Nets of .* differ in shape, so a LoRA cannot pass",
        "tokens": r"has one text encoder \(32 wide\) and .* has 2 text encoders \(32 and 32 wide\)",
    }
    with pytest.raises(ModelError, match=rf"adapt\.model: .*{said[method]}"):
        check(full(tiny_sdxl, model=str(tiny_sd), method=method))


def test_a_parent_and_a_model_with_another_unet_of_its_shape_go_together(tiny_sd: Path, tmp_path: Path) -> None:
    """As SwiftBrush is given: the parent's model, and a folder or a file of the U-Net that draws."""
    from tiny_models import build_sd

    other = build_sd(tmp_path / "other", seed=4) / "unet"
    file = shutil.copyfile(next(other.glob("*.safetensors")), tmp_path / "unet.safetensors")
    for unet in (other, file):
        check(full(tiny_sd, model=str(tiny_sd), backend={"unet": str(unet)}))


def test_lora_targets_that_cannot_be_adapted_are_refused_with_the_reason(tiny_sd: Path) -> None:
    with pytest.raises(ModelError) as caught:
        check(full(tiny_sd, targets=["to_q", "norm1", "to_quux"]))
    assert "no module of the U-Net ends in to_quux" in str(caught.value)
    assert "norm1: layers with one weight a channel, as those that normalise, take no LoRA" in str(caught.value)


def test_a_vocabulary_that_has_the_learned_words_already_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd, tmp_path / "model")
    tokenizer = load_tokenizers(model)[0]
    tokenizer.add_tokens(["<class_1>"])
    tokenizer.save_pretrained(model / "tokenizer")
    with pytest.raises(ModelError, match="<class_1> is a word of the vocabulary of .*use the base model"):
        check(full(model))
    check(full(model, method="lora"))


@pytest.mark.parametrize(
    ("names", "descriptions", "text", "said"),
    [
        (("Cat", "cat", "owl"), ("", "", ""), "a {name}", "lora is told 'Cat' and 'cat' in the same words: 'a cat'"),
        (
            ("red_owl", "dog", "red owl"),
            ("", "", ""),
            "a {name}",
            "lora is told 'red_owl' and 'red owl' in the same words",
        ),
        (("cat", "dog", "  "), ("", "", ""), "a {name}", "1 of them tokenise to nothing, for example '  '"),
        (
            ("a", "b", "c"),
            ("red owl", "red owl", "cat"),
            "a {description}",
            "lora is told 'a' and 'b' in the same words",
        ),
        (("Cat", "cat", "owl"), ("red", "blue", ""), "a {name}, {description}", ""),
        (("Cat", "cat", "owl"), ("", "", ""), "a photo", ""),
    ],
)
def test_classes_that_a_lora_could_not_tell_apart_are_refused(
    tiny_sd: Path, names: tuple[str, ...], descriptions: tuple[str, ...], text: str, said: str
) -> None:
    recipe = full(tiny_sd, method="lora", prompts={"text": text})
    with pytest.raises(ModelError, match=said) if said else nullcontext():
        check(recipe, names, descriptions)


def test_a_scheduler_that_predicts_something_else_is_refused(tiny_sd: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_sd, tmp_path / "model")
    path = model / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "flow_prediction"}))
    with pytest.raises(ModelError, match="says prediction_type flow_prediction, which this cannot teach"):
        check(full(model))
