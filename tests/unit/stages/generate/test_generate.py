"""Generate stage on a tiny model: files, table, the same bytes after loss, kill, and with more workers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from variegate.errors import DataError, RunFolderError, TaskFailed
from variegate.files import file_sha256
from variegate.images import encode_image, load_rgb
from variegate.pipeline import Context
from variegate.progress import EventLog, QuietReporter
from variegate.recipe import BackendSection, EvaluateSection, FractalStep, GenerateSection, PromptsSection, Recipe
from variegate.records import ClassInfo, RealImage, content_id, soft_label
from variegate.stages.generate import stage
from variegate.stages.generate.draw import is_out_of_memory
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

    def counts(self) -> dict:
        return {"train": {"cat": 3, "dog": 3, "red_owl": 3}}


def test_the_estimate_counts_what_would_be_drawn(tiny_sd: Path) -> None:
    answer = stage.estimate(recipe_of(tiny_sd), Facts(), measure=False)
    assert (answer["images"], answer["unet_evaluations"], answer["chunks"]) == (18, 108, 4)
    assert answer["images_per_class"] == {"cat": 6, "dog": 6, "red_owl": 6}
    assert "seconds" not in answer and answer["disk_mb"] > 0
    refined = recipe_of(tiny_sd).model_copy(update={"refine": [FractalStep(op="fractal")]})
    more = stage.estimate(refined, Facts(), measure=False)
    assert (more["refined_images"], more["operations"]) == (18, ["fractal"]) and more["disk_mb"] > answer["disk_mb"]
    timed = stage.estimate(recipe_of(tiny_sd), Facts())
    assert timed["seconds"] > 0 and json.dumps(timed)
