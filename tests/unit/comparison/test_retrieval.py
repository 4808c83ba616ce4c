"""Retrieval: nearest images of a pool, and a pool that holds what the classifier is judged by."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from variegate.comparison import outcomes
from variegate.comparison.retrieval import PoolImage, encoder_of, leaks, looks_at, nearest, read_pool, retrieve
from variegate.errors import DataError, Problem
from variegate.progress import QuietReporter
from variegate.recipe import ArmSection, Recipe
from variegate.records import RealImage, content_id


def saved(path: Path, seed: int, *, tint: int | None = None, **options) -> Path:
    """Random blots, of mostly one colour with `tint`."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    blots = rng.integers(0, 255, (6, 6, 3), np.uint8)
    if tint is not None:
        blots //= np.where(np.arange(3) == tint, 1, 6).astype(np.uint8)
    small = Image.fromarray(blots)
    small.resize((48, 48), Image.Resampling.BILINEAR).save(path, **options)
    return path


def pooled(path: Path) -> PoolImage:
    return PoolImage(path.name, path, hashlib.sha256(path.read_bytes()).hexdigest())


def real(path: Path) -> RealImage:
    return RealImage(path.stem, str(path), 0, "test", sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def found_leaks(pool: list[PoolImage], test: Path) -> list[Problem]:
    return leaks(pool, looks_at([image.path for image in pool], 1.0), [real(test)], 1.0)


def test_an_image_goes_to_the_class_it_is_nearest_to_and_to_no_other() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16)) * 3
    labels = np.repeat(np.arange(3), 4)
    features = centres[labels] + rng.normal(size=(12, 16))
    truth = np.repeat(np.arange(3), 10)
    pool = centres[truth] + rng.normal(size=(30, 16))
    found = nearest(features, labels, pool, [5, 20, 0])
    assert [len(indices) for indices in found[::2]] == [5, 0]
    for label, indices in enumerate(found):
        assert {int(truth[i]) for i in indices} <= {label}
    assert len({i for indices in found for i in indices}) == sum(map(len, found))


def test_a_pool_is_any_folder_and_every_picture_counts_once(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", 1), saved(tmp_path / "deep/er/b.jpg", 2), saved(tmp_path / "again.png", 1)
    (tmp_path / "notes.txt").write_text("no image")
    found = read_pool(str(tmp_path), Recipe(), tmp_path / "kept")
    assert [image.name for image in found] == ["again.png", "deep/er/b.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        read_pool(str(tmp_path / "empty"), Recipe(), tmp_path / "kept")


def test_every_broken_image_of_a_pool_is_named_before_anything_slow(tmp_path: Path) -> None:
    saved(tmp_path / "good.png", 1)
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:80])
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(DataError) as caught:
        read_pool(str(tmp_path), Recipe(), tmp_path / "kept")
    assert all(f"--pool {tmp_path}: {name}" in str(caught.value) for name in ("cut.png", "empty.jpg"))
    assert "dataset.skip_unreadable" in str(caught.value)
    lenient = Recipe.model_validate({"dataset": {"skip_unreadable": True}})
    assert [image.name for image in read_pool(str(tmp_path), lenient, tmp_path / "kept")] == ["good.png"]
    with pytest.raises(DataError, match="max_megapixels"):
        read_pool(str(tmp_path), Recipe.model_validate({"dataset": {"max_megapixels": 0.001}}), tmp_path / "kept")


def test_drawn_data_can_be_a_pool(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(
        {"dataset": {"shots": 1, "meadow": {"n_species": 2, "n_per_species": 2, "n_val": 0, "n_test": 1}}}
    )
    found = read_pool("builtin:meadow", recipe, tmp_path / "kept")
    assert len(found) == 6 and all(image.path.is_file() for image in found)


def test_held_out_images_in_a_pool_are_found_though_saved_anew(tmp_path: Path) -> None:
    test = saved(tmp_path / "test.png", 1)
    others = [pooled(saved(tmp_path / f"pool/{seed}.png", seed)) for seed in range(2, 30)]
    assert found_leaks(others, test) == []
    copy = saved(tmp_path / "pool/copy.png", 1)
    again = saved(tmp_path / "pool/again.jpg", 1, quality=80)
    for leaking in (copy, again):
        problems = found_leaks([*others, pooled(leaking)], test)
        assert len(problems) == 1 and leaking.name in problems[0].what and "test.png" in problems[0].what


def test_the_encoder_is_the_one_the_recipe_curates_with() -> None:
    named = Recipe.model_validate(
        {"curate": [{"score": "blank"}, {"score": "class-agreement", "encoder": "clip:starter"}]}
    )
    assert (encoder_of(named), encoder_of(Recipe())) == ("clip:starter", "auto")


def test_a_pool_that_changed_is_looked_at_again(coloured_run, tmp_path: Path) -> None:
    context = coloured_run()
    folder, encoder = context.folder, {"curate": [{"score": "class-agreement", "encoder": "clip:starter"}]}
    recipe = Recipe.model_validate({**context.recipe.model_dump(), **encoder})
    pool = [pooled(saved(tmp_path / f"pool/{seed}.png", seed, tint=seed % 3)) for seed in range(30)]
    retrieve(folder, pool, recipe, [2, 0, 1], QuietReporter())
    first = {image.id: image.target for image in folder.synthetic_images()}
    assert sorted(first.values()) == [0, 0, 2], "a class that wants none gets none"
    retrieve(folder, pool, recipe, [2, 0, 1], QuietReporter())
    assert {image.id for image in folder.synthetic_images()} == set(first)
    gone = next(iter(first))
    left = [image for image in pool if content_id("retrieved", image.sha256, first[gone]) != gone]
    retrieve(folder, left, recipe, [2, 0, 1], QuietReporter())
    assert gone not in {image.id for image in folder.synthetic_images()}
    held_out = Path(folder.real_images("test")[0].path)
    with pytest.raises(DataError, match="holds 1 validation or test images"):
        retrieve(folder, [*left, pooled(held_out)], recipe, [2, 0, 1], QuietReporter())


class Told(QuietReporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


def test_pictures_that_are_there_again_are_left_out_and_counted(coloured_run, tmp_path: Path) -> None:
    """A training image saved again is no new image, and a picture that is there ten times is one picture."""
    context, told = coloured_run(), Told()
    folder = context.folder
    recipe = Recipe.model_validate(
        {**context.recipe.model_dump(), "curate": [{"score": "class-agreement", "encoder": "clip:starter"}]}
    )
    pool = [pooled(saved(tmp_path / f"pool/{seed}.png", seed, tint=seed % 3)) for seed in range(30)]
    again = [pooled(saved(tmp_path / f"pool/again-{seed}.jpg", seed, tint=seed % 3, quality=90)) for seed in range(5)]
    resaved = []
    for number, image in enumerate(folder.real_images("train")):
        path = tmp_path / f"pool/resaved-{number}.jpg"
        Image.open(image.path).resize((64, 64)).save(path, quality=90)
        resaved.append(pooled(path))
    retrieve(folder, [*pool, *again, *resaved], recipe, [99, 99, 99], told)
    taken = {image.id for image in folder.synthetic_images()}
    assert taken == {content_id("retrieved", image.sha256, label) for image in pool for label in range(3)} & taken
    assert len(taken) == 30
    (line,) = told.lines
    assert line.startswith(
        "retrieve: 30 of 50 images of the pool; left out: 15 that are training images, 5 nearly like"
    )
    assert "fewer than are drawn for 3 of 3 classes" in line
    retrieve(folder, [*pool, *again, *resaved], recipe, [99, 99, 99], told)
    assert told.lines == [line], "not done twice"


def test_retrieved_images_have_their_cost_and_images_from_elsewhere_have_none(coloured_run, tmp_path: Path) -> None:
    """Looking at a pool takes time; what made other pools took it is not known here, so no gain a minute either."""
    retrieved, elsewhere = coloured_run("retrieved"), coloured_run("elsewhere")
    retrieved.folder.finish_stage("retrieve", "key", 12.0, {"cost": {"energy_j": 5.0, "peak_memory_mb": 300.0}})
    arm = ArmSection(name="mixed", images="real+synthetic")
    found = {}
    for name, pool in (("by retrieval", retrieved), ("from elsewhere", elsewhere)):
        context = coloured_run(name, train={"pools": [str(pool.folder.root)]})
        task = {"arm": "mixed", "seed": 0, "seconds": 3.0}
        for stage, said in (("generate", {"drawn": 0, "unet_evaluations": 0}), ("train", {"tasks": [task]})):
            context.folder.finish_stage(stage, "key", 4.0, said)
        found[name] = outcomes._cost(context.folder, arm, 1, None)
    assert found["by retrieval"]["seconds"]["retrieve"] == 12.0 and not found["by retrieval"]["made_elsewhere"]
    assert found["by retrieval"]["memory_mb"]["retrieve"] == 300.0
    assert found["from elsewhere"]["made_elsewhere"] and "retrieve" not in found["from elsewhere"]["seconds"]
    assert found["by retrieval"]["seconds"]["train"] == 3.0 and found["by retrieval"]["energy_j"]["train"] is None
