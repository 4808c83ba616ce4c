"""Generate stage on a tiny model: files, table, the same bytes after loss, kill, and with more workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from variegate.backends.adapter import ADAPTER, AdapterFacts, write_adapter
from variegate.backends.devices import is_out_of_memory
from variegate.backends.diffusion import DiffusionBackend
from variegate.errors import DataError, RunFolderError, TaskFailed
from variegate.files import file_sha256
from variegate.image_quality.copying import find_copies
from variegate.images import encode_image, load_mask, load_rgb, load_square
from variegate.masks import Masking
from variegate.pipeline import Context
from variegate.progress import EventLog, QuietReporter
from variegate.recipe import (
    AdaptSection,
    BackendSection,
    EvaluateSection,
    FractalStep,
    GenerateSection,
    PromptsSection,
    Recipe,
)
from variegate.records import ClassInfo, RealImage, content_id, soft_label
from variegate.stages.generate import stage
from variegate.stages.generate.class_masks import told_of
from variegate.stages.generate.draw import DrawWorker
from variegate.store import RunFolder

NAMES = ("cat", "dog", "red_owl")


def recipe_of(model: Path, *, backend: dict | None = None, **generate: object) -> Recipe:
    values = {
        "dtype": "bf16",
        "device": "cpu",
        "steps": 5,
        "batch": 5,
        "threads": 1,
        "guidance_scale": 2.0,
        **(backend or {}),
    }
    return Recipe(
        backend=BackendSection(model=str(model), **values),
        prompts=PromptsSection(negative="blurry"),
        generate=GenerateSection(**{"method": "real-mix", "per_real": 2, "strength": [0.4, 0.8], **generate}),
        evaluate=EvaluateSection(arms=["real"]),
    )


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    """A run folder with data and prompts in place, as the stages before leave it."""

    def make(name: str = "run", classes: int = 3, per_class: int = 3) -> RunFolder:
        folder = RunFolder.create(tmp_path / name)
        images = []
        for label in range(classes):
            for k in range(per_class):
                rng = np.random.default_rng([label, k])
                path = folder.write(
                    f"dataset/{label}-{k}.png", encode_image(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8), "png")
                )
                image_id = content_id(label, k)
                images.append(RealImage(image_id, f"dataset/{label}-{k}.png", label, "train", sha256=file_sha256(path)))
        folder.put_dataset([ClassInfo(k, NAMES[k], f"{k:04d}-{NAMES[k]}") for k in range(classes)], images)
        lines = [
            {"label": k, "image": None, "text": 0, "environment": None, "prompt": f"a photo of {NAMES[k]}"}
            for k in range(classes)
        ]
        folder.write("prompts/prompts.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        folder.put_artefact("prompts", "prompts", "prompts/prompts.jsonl")
        return folder

    return make


def draw(folder: RunFolder, recipe: Recipe, workers: int = 1) -> dict:
    with_events = EventLog(folder.root / "events.jsonl")
    try:
        return stage.run(Context(recipe, folder, QuietReporter(with_events), workers))
    finally:
        with_events.close()


def hashes(folder: RunFolder) -> dict[str, str]:
    files = (path for path in sorted((folder.root / "synthetic").rglob("*")) if path.is_file())
    return {str(path.relative_to(folder.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def events(folder: RunFolder, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (folder.root / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["event"] == kind]


def test_every_planned_image_is_there_and_counted(tiny_sd: Path, make_run) -> None:
    with make_run() as folder:
        summary = draw(folder, recipe_of(tiny_sd))
        images = folder.synthetic_images()
        assert len(images) == summary["drawn"] == 18
        assert all((folder.root / image.path).is_file() for image in images)
        assert summary["unet_evaluations"] == 9 * 2 * 2 + 9 * 4 * 2
        assert summary["chunks"] == 4 and "18 images drawn in" in summary["line"]
        assert stage.intact(Context(recipe_of(tiny_sd), folder, QuietReporter()))


def test_each_worker_draws_on_the_device_of_its_turn(tiny_sd: Path, make_run) -> None:
    with make_run() as folder:
        context = Context(recipe_of(tiny_sd), folder, QuietReporter())
        setup = stage.draw_setup(context, stage.prepare(context))
        for number, device in enumerate(["cpu", "meta", "cpu"]):
            with closing(DrawWorker(replace(setup, devices=("cpu", "meta")), number)) as worker:
                assert worker.backend.device.type == device


def test_the_table_says_what_each_image_is(tiny_sd: Path, make_run) -> None:
    with make_run() as folder:
        draw(folder, recipe_of(tiny_sd))
        lines = [json.loads(line) for line in (folder.root / "synthetic/train/metadata.jsonl").read_text().splitlines()]
        assert [line["id"] for line in lines] == sorted(line["id"] for line in lines)
        labels = {image.id: image.label for image in folder.real_images("train")}
        for line in lines:
            assert (folder.root / "synthetic/train" / line["file_name"]).is_file()
            assert line["class_name"] == NAMES[line["label"]] and NAMES[line["label"]] in line["prompt"]
            pairs = tuple((part["label"], part["weight"]) for part in line["soft_label"])
            assert pairs == soft_label(labels[line["source"]], line["label"], line["strength"], gamma=0.5)


def test_hf_datasets_loads_the_folder(tiny_sd: Path, make_run, tmp_path: Path) -> None:
    from datasets import disable_progress_bars, load_dataset

    with make_run() as folder:
        draw(folder, recipe_of(tiny_sd))
        disable_progress_bars()
        loaded = load_dataset("imagefolder", data_dir=str(folder.root / "synthetic"), cache_dir=str(tmp_path / "cache"))
    assert len(loaded["train"]) == 18
    row = loaded["train"][0]
    assert row["image"].size == (32, 32) and isinstance(row["label"], int) and row["soft_label"][0]["weight"] > 0


@pytest.mark.parametrize("model", ["tiny_sd", "tiny_sdxl"])
def test_lost_images_come_back_with_the_same_bytes(model: str, make_run, request: pytest.FixtureRequest) -> None:
    recipe = recipe_of(request.getfixturevalue(model))
    with make_run() as folder:
        draw(folder, recipe)
        before = hashes(folder)
        lost = folder.root / folder.synthetic_images()[7].path
        lost.unlink()
        context = Context(recipe, folder, QuietReporter())
        assert not stage.intact(context)
        summary = draw(folder, recipe)
        assert 1 <= summary["drawn_now"] <= 5 and "were there already" in summary["line"]
        assert hashes(folder) == before and stage.intact(context)


def test_stopped_anywhere_it_ends_with_the_same_bytes(tiny_sd: Path, make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(tiny_sd)
    with make_run("whole") as folder:
        draw(folder, recipe)
        whole = hashes(folder)
    with make_run("stopped") as folder:
        real, count = stage._record, []

        def stop_after_two(context: Context, result: object) -> None:
            real(context, result)
            count.append(result)
            if len(count) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(stage, "_record", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            draw(folder, recipe)
        monkeypatch.undo()
        assert len(folder.pending_chunks()) == 2
        image = folder.synthetic_images()[0]
        unfinished = (folder.root / image.path).with_name(f".{image.id}.jpg.1234.tmp")
        unfinished.write_bytes(b"half")
        assert draw(folder, recipe)["drawn_now"] < 18
        assert hashes(folder) == whole and not unfinished.exists()


def test_a_chunk_that_does_not_fit_is_drawn_in_parts_and_said(
    tiny_sd: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from variegate.backends.diffusion import DiffusionBackend

    real = DiffusionBackend.draw

    def at_most_three(self, prompts, sources, **options):  # noqa: ANN001, ANN202
        if len(prompts) > 3:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return real(self, prompts, sources, **options)

    monkeypatch.setattr(DiffusionBackend, "draw", at_most_three)
    with make_run() as folder:
        assert draw(folder, recipe_of(tiny_sd))["drawn"] == 18
        assert len(folder.synthetic_images()) == 18
        assert all(event["parts"] == 2 for event in events(folder, "chunk"))
        assert any("memory ran out: drawn in 2 parts" in event["text"] for event in events(folder, "line"))


def test_one_image_that_does_not_fit_fails_by_name(tiny_sd: Path, make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    from variegate.backends.diffusion import DiffusionBackend

    def never(self, *_: object, **__: object) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(DiffusionBackend, "draw", never)
    with (
        make_run() as folder,
        pytest.raises(TaskFailed, match="generate: chunk 0 failed: memory does not suffice for one image"),
    ):
        draw(folder, recipe_of(tiny_sd))
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried")) and not is_out_of_memory(
        RuntimeError("shape mismatch")
    )


def test_strategies_and_one_step(tiny_sd: Path, make_run) -> None:
    with make_run("gen") as folder:
        draw(folder, recipe_of(tiny_sd, method="real-gen"))
        assert all(image.source is None and image.strength == 1.0 for image in folder.synthetic_images())
        assert not (folder.root / "cache").exists()
    with make_run("aug") as folder:
        one_step = {"steps": 1, "guidance_scale": 1.0}
        summary = draw(folder, recipe_of(tiny_sd, method="real-aug", backend=one_step))
        assert summary["unet_evaluations"] == 18
        assert all(image.source_label == image.target for image in folder.synthetic_images())
    with make_run("none") as folder:
        assert draw(folder, recipe_of(tiny_sd, method="none"))["line"] == "nothing to draw"
    with make_run("single", classes=1) as folder, pytest.raises(DataError, match="use real-aug"):
        draw(folder, recipe_of(tiny_sd))


def test_images_to_be_refined_are_written_without_loss_under_the_same_ids(tiny_sd: Path, make_run) -> None:
    plain = recipe_of(tiny_sd, per_real=1)
    refined = plain.model_copy(update={"refine": [FractalStep(op="fractal")]})
    with make_run("plain") as folder:
        draw(folder, plain)
        as_jpg = {image.id: load_rgb(folder.root / image.path) for image in folder.synthetic_images()}
    with make_run("refined") as folder:
        draw(folder, refined)
        assert folder.synthetic_images() == [] and not (folder.root / "synthetic").exists()
        drawn = {path.stem: path for path in (folder.root / "drawn").rglob("*.png")}
        assert drawn.keys() == as_jpg.keys()
        for image_id, path in drawn.items():
            jpg = folder.write("x.jpg", encode_image(load_rgb(path), "jpg"))
            assert (load_rgb(jpg) == as_jpg[image_id]).all()
        before = hashes_of(drawn)
        drawn[min(drawn)].unlink()
        context = Context(refined, folder, QuietReporter())
        assert not stage.intact(context)
        draw(folder, refined)
        assert hashes_of(drawn) == before and stage.intact(context)


def hashes_of(files: dict[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_the_plan_keeps_the_machine_it_was_made_for(tiny_sd: Path, make_run) -> None:
    recipe = recipe_of(tiny_sd)
    with make_run() as folder:
        draw(folder, recipe)
        stored = json.loads(folder.meta("backend"))
        folder.set_meta("backend", json.dumps({**stored, "device": "cuda:77"}))
        with pytest.raises(RunFolderError, match="was planned on cuda:77, which is not here"):
            draw(folder, recipe)


class Facts:
    """What the dataset stage knows before anything is written."""

    classes = tuple(ClassInfo(k, name, f"{k:04d}") for k, name in enumerate(NAMES))

    def __init__(self, images: int = 3) -> None:
        self.images = images

    def counts(self) -> dict:
        return {"train": dict.fromkeys(NAMES, self.images)}


def test_the_estimate_counts_what_would_be_drawn(tiny_sd: Path) -> None:
    answer = stage.estimate(recipe_of(tiny_sd), Facts(), measure=False)
    assert (answer["images"], answer["unet_evaluations"], answer["chunks"]) == (18, 108, 4)
    assert answer["images_per_class"] == {"cat": 6, "dog": 6, "red_owl": 6}
    assert "seconds" not in answer and answer["disk_mb"] > 0
    refined = recipe_of(tiny_sd).model_copy(update={"refine": [FractalStep(op="fractal")]})
    more = stage.estimate(refined, Facts(), measure=False)
    assert (more["refined_images"], more["operations"]) == (18, ["fractal"]) and more["disk_mb"] > answer["disk_mb"]
    timed = stage.estimate(recipe_of(tiny_sd), Facts())
    assert timed["seconds"]["generate"] > 0 and json.dumps(timed)


@pytest.mark.parametrize(("images", "learned"), [(3, 9600), (100, 57600), (1000, 96000)])
def test_the_estimate_counts_what_adapting_goes_through(tiny_sd: Path, images: int, learned: int) -> None:
    recipe = recipe_of(tiny_sd).model_copy(update={"adapt": AdaptSection(method="lora")})
    assert stage.estimate(recipe, Facts(images), measure=False)["images_learned_from"] == learned


def test_the_estimate_counts_pairs_that_a_parent_draws_and_the_lesson_from_them(tiny_sd: Path) -> None:
    distill = {"pairs": 64, "steps": 10}
    recipe = recipe_of(tiny_sd).model_copy(
        update={"adapt": AdaptSection(method="lora", model=str(tiny_sd), distill=distill, batch=8, steps=5)}
    )
    answer = stage.estimate(recipe, Facts(), measure=False)
    assert (answer["pairs"], answer["images_learned_from"]) == (64, (5 + 10) * 8)
    assert answer["pair_evaluations"] == 64 * 20 * 2, "a parent whose recipe draws in few steps takes 20, with guidance"


# ------------------------------------------------------------------------------------------ edits, masks, sequences


def with_masks(folder: RunFolder) -> None:
    """Give every image of a run a mask: a rectangle of its own."""
    masked = []
    for number, image in enumerate(folder.real_images("train")):
        mask = np.zeros((40, 36, 3), np.uint8)
        mask[4 + number : 22 + number, 6:24] = 255
        path = folder.write(f"dataset/mask-{number}.png", encode_image(mask, "png"))
        relative = Path(image.path).relative_to(folder.root)
        masked.append(replace(image, path=str(relative), mask=str(path), width=36, height=40))
    folder.put_dataset(folder.classes(), masked)


def drawn_and_sources(
    folder: RunFolder, recipe: Recipe, edge: int = 32
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(drawn, source, what was repainted) of every image."""
    masking = Masking(recipe.generate.mask, recipe.generate.mask_grow, edge, "crop", 64.0)
    real = {image.id: image for image in folder.real_images("train")}
    return [
        (
            load_square(folder.root / image.path, edge).astype(int),
            load_square(Path(real[image.source].path), edge).astype(int),
            masking.repainted(real[image.source]),
        )
        for image in folder.synthetic_images()
    ]


def test_edits_change_every_image_and_keep_its_class(tiny_edit: Path, make_run) -> None:
    with make_run() as folder:
        summary = draw(folder, recipe_of(tiny_edit, method="edit", per_real=1))
        labels = {image.id: image.label for image in folder.real_images("train")}
        images = folder.synthetic_images()
        assert sorted(image.source for image in images) == sorted(labels)
        assert all(labels[image.source] == image.target and image.strength == 1.0 for image in images)
        assert summary["unet_evaluations"] == 9 * 5 * 3


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_inpaint"])
@pytest.mark.parametrize("part", ["object", "background"])
def test_pasted_masks_change_only_what_they_repaint(
    request: pytest.FixtureRequest, make_run, monkeypatch: pytest.MonkeyPatch, kind: str, part: str
) -> None:
    monkeypatch.setattr(stage, "IMAGE_FORMAT", "png")
    recipe = recipe_of(
        request.getfixturevalue(kind), method="real-aug", strength=0.8, mask=part, mask_grow=0.05, mask_paste=True
    )
    with make_run() as folder:
        with_masks(folder)
        draw(folder, recipe)
        for drawn, source, repainted in drawn_and_sources(folder, recipe):
            assert np.array_equal(drawn[~repainted], source[~repainted])
            assert np.abs(drawn - source)[repainted].mean() > 10


@pytest.mark.parametrize("kind", ["tiny_sd", "tiny_inpaint"])
def test_masks_by_the_model_are_made_once_and_kept_to(
    request: pytest.FixtureRequest, make_run, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(stage, "IMAGE_FORMAT", "png")
    masks = {"mask": "background", "mask_from": "model", "mask_paste": True}
    recipe = recipe_of(request.getfixturevalue(kind), method="real-aug", strength=0.8, **masks)
    stage.check(recipe, [RealImage("", "a.png", 0, "train")])  # the data need none
    with make_run() as folder:
        draw(folder, recipe)
        found = {path: path.read_bytes() for path in sorted((folder.root / "masks").rglob("*.png"))}
        real = {image.id: image for image in folder.real_images("train")}
        assert {path.stem for path in found} == set(real)
        by_id = {path.stem: load_mask(path, 32) for path in found}
        for image in folder.synthetic_images():
            drawn = load_square(folder.root / image.path, 32).astype(int)
            source, kept = load_square(Path(real[image.source].path), 32).astype(int), by_id[image.source]
            assert 0 < kept.mean() < 1 and np.array_equal(drawn[kept], source[kept])
            assert np.abs(drawn - source)[~kept].mean() > 5
        written, before = {path: path.stat().st_mtime_ns for path in found}, hashes(folder)
        next((folder.root / "synthetic").rglob("*.png")).unlink()
        draw(folder, recipe)
        assert {path: path.stat().st_mtime_ns for path in found} == written and hashes(folder) == before
        next(iter(found)).unlink()
        next((folder.root / "synthetic").rglob("*.png")).unlink()
        draw(folder, recipe)
        assert {path: path.read_bytes() for path in found} == found and hashes(folder) == before


def test_masks_by_the_model_are_told_the_words_of_the_adapter(tiny_sd: Path, make_run) -> None:
    plain = recipe_of(tiny_sd, method="real-aug", mask="background", mask_from="model")
    taken = plain.model_copy(update={"generate": plain.generate.model_copy(update={"method": "ti-aug"})})
    with make_run() as folder:
        names = tuple(f"<class_{k}>" for k in range(3))
        facts = AdapterFacts("tokens", NAMES, names, recipe={"adapt": {"superclass": "bird"}})
        write_adapter(folder.root / ADAPTER, facts, [{name: torch.ones(1, 32) for name in names}])
        images = folder.real_images("train")
        told = told_of(Context(taken, folder, QuietReporter()), images)
        assert told == [(f"a photo of a <class_{image.label}> bird", "") for image in images]
        told = told_of(Context(plain, folder, QuietReporter()), images)
        assert [text for text, _ in told] == [f"a photo of a {NAMES[i.label].replace('_', ' ')}" for i in images]


def test_pasted_images_are_no_copies_of_their_own_sources(tiny_sd: Path, make_run) -> None:
    recipe = recipe_of(tiny_sd, method="real-aug", per_real=1, strength=0.2)
    with make_run() as folder:
        draw(folder, recipe)
        real = {image.id: Path(image.path) for image in folder.real_images("train")}
        for image in folder.synthetic_images():
            with Image.open(real[image.source]) as picture:
                picture.save(folder.root / image.path, quality=95)
        images = folder.synthetic_images()
        found = {
            pasted: find_copies(folder, recipe.dataset, images, QuietReporter(), seed=0, pasted=pasted).are_copies()
            for pasted in (False, True)
        }
        assert found[False].all() and not found[True].any()


def test_what_masks_by_the_model_cost_is_part_of_the_plan(tiny_sd: Path) -> None:
    recipe = recipe_of(tiny_sd, method="real-aug", mask="background", mask_from="model")
    assert stage.estimate(recipe, Facts(5), measure=False)["mask_evaluations"] == 2 * 10 * 3 * 5
    assert "mask_evaluations" not in stage.estimate(recipe_of(tiny_sd), Facts(), measure=False)


def test_an_edited_mask_is_another_plan(tiny_sd: Path, make_run) -> None:
    recipe = recipe_of(tiny_sd, method="real-aug", mask="object", per_real=1)
    with make_run() as folder:
        with_masks(folder)
        draw(folder, recipe)
        before = {image.id for image in folder.synthetic_images()}
        assert draw(folder, recipe)["drawn_now"] == 0
        assert len({row.mask for chunk in (0,) for row in folder.plan_rows(chunk)}) > 1
        mask = np.zeros((40, 36, 3), np.uint8)
        mask[2:9, 2:9] = 255
        folder.write("dataset/mask-0.png", encode_image(mask, "png"))
        with pytest.raises(RunFolderError, match="holds images drawn from other data"):
            draw(folder, recipe)
        assert {image.id for image in folder.synthetic_images()} == before


def test_masks_that_are_missing_are_counted(tiny_sd: Path, make_run) -> None:
    recipe = recipe_of(tiny_sd, method="real-aug", mask="object")
    unmasked = [RealImage("", f"{k}.png", 0, "train") for k in range(9)]
    with pytest.raises(DataError, match="9 of 9 training images have no mask: 0.png, 1.png, 2.png — give a table"):
        stage.check(recipe, unmasked)
    stage.check(recipe_of(tiny_sd, method="real-aug"), unmasked)
    with make_run() as folder:
        with_masks(folder)
        stage.check(recipe, folder.real_images("train"))
        folder.write("dataset/mask-0.png", encode_image(np.zeros((40, 36, 3), np.uint8), "png"))
        with pytest.raises(
            DataError, match="1 of 9 training images have masks that are all black or all white at 32 px"
        ):
            stage.check(recipe, folder.real_images("train"))
    with make_run("bare") as folder, pytest.raises(DataError, match="9 of 9 training images have no mask"):
        draw(folder, recipe)


def test_the_latents_of_what_masks_leave_are_kept_by_mask(tiny_inpaint: Path, make_run) -> None:
    with make_run() as folder:
        with_masks(folder)
        recipe = recipe_of(tiny_inpaint, method="real-aug", mask="object", per_real=1)
        draw(folder, recipe)
        assert len(list((folder.root / "cache/latents").iterdir())) == 2, "of whole sources, and of masked ones"
        files, before = hashes(folder), {path.name for path in (folder.root / "cache/latents").iterdir()}
        for path in (folder.root / "synthetic").rglob("*.jpg"):
            path.unlink()
        draw(folder, recipe)
        assert {path.name for path in (folder.root / "cache/latents").iterdir()} == before
        assert {name: value for name, value in hashes(folder).items() if name in files} == files


def test_a_sequence_is_planned_drawn_and_counted(tiny_sd: Path, make_run) -> None:
    recipe = recipe_of(
        tiny_sd, method="real-aug", per_real=4, strength=[0.4, 0.8], compose="sequential", probability=[1.0, 0.5]
    )
    with make_run() as folder:
        summary = draw(folder, recipe)
        rows = [row for chunk in range(summary["chunks"]) for row in folder.plan_rows(chunk)]
        assert {row.passes for row in rows} == {(0.4,), (0.4, 0.8)}
        assert all(row.steps == {1: 2, 2: 6}[len(row.passes)] for row in rows)
        assert summary["unet_evaluations"] == sum(row.steps for row in rows) * 2
        first = hashes(folder)
    with make_run("again") as folder:
        draw(folder, recipe, workers=2)
        assert hashes(folder) == first


def test_the_estimate_counts_edits_and_sequences_as_they_are_drawn(tiny_sd: Path, tiny_edit: Path, make_run) -> None:
    for model, section in (
        (tiny_edit, {"method": "edit"}),
        (tiny_sd, {"method": "real-aug", "compose": "sequential", "probability": 0.5}),
    ):
        recipe = recipe_of(model, **section)
        with make_run(section["method"]) as folder:
            summary = draw(folder, recipe)
            facts = SimpleNamespace(classes=folder.classes(), counts=lambda: {"train": dict.fromkeys(NAMES, 3)})
            found = stage.estimate(recipe, facts)
        assert found["unet_evaluations"] == summary["unet_evaluations"] and found["seconds"]["generate"] > 0


def test_da_fusion_fault_the_same_source_is_encoded_for_each_of_its_variants(
    tiny_sd: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    encode = DiffusionBackend.encode_sources

    def counted(self: DiffusionBackend, pixels: np.ndarray, hidden: np.ndarray | None = None) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(self, pixels, hidden)

    monkeypatch.setattr(DiffusionBackend, "encode_sources", counted)
    with make_run() as folder:
        assert draw(folder, recipe_of(tiny_sd, method="real-aug", per_real=4))["drawn"] == 36
    assert sum(encoded) == 9
