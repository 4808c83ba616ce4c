"""From DATA to frozen splits in a run folder, and every kind of bad data refused with nothing written."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import time
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from variegate.errors import DataError
from variegate.images import load_mask, load_squares
from variegate.pipeline import Context, run_stages
from variegate.progress import QuietReporter
from variegate.recipe import Recipe
from variegate.stages.dataset import builtin, stage
from variegate.stages.dataset.meadow import make_meadow
from variegate.stages.dataset.source import read_source
from variegate.store import RunFolder


def recipe_for(data: Path | str, seed: int = 0, **dataset) -> Recipe:
    return Recipe.model_validate({"seed": seed, "dataset": {"path": str(data), "size_px": 16, **dataset}})


def paint(path: Path, value: int) -> None:
    """A small image that no other value gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (20, 24, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def pets(root: Path, *, n: int = 10, names: tuple[str, ...] = ("cat", "dog"), first: int = 0) -> Path:
    for label, name in enumerate(names):
        for k in range(n):
            paint(root / name / f"{k}.png", first + 1000 * label + k)
    return root


def run(recipe: Recipe, root: Path):
    with RunFolder.create(root) as folder:
        summary = stage.run(Context(recipe, folder, QuietReporter()))
        return summary, folder.classes(), folder.real_images()


def refused(recipe: Recipe) -> str:
    with pytest.raises(DataError) as caught:
        stage.check(recipe)
    return str(caught.value)


# ---------------------------------------------------------------------------------------------------- good data


def test_a_folder_is_frozen(tmp_path):
    data = pets(tmp_path / "pets")
    summary, classes, images = run(recipe_for(data, size_px=20), tmp_path / "run")
    assert summary["line"] == f"{data}: 2 classes, 12 train, 2 val, 6 test"
    assert summary["counts"]["train"] == {"cat": 6, "dog": 6}
    assert [(one.label, one.name, one.slug) for one in classes] == [(0, "cat", "0000-cat"), (1, "dog", "0001-dog")]
    assert len(images) == 20
    assert len({image.id for image in images}) == 20
    for image in images:
        assert image.sha256 == hashlib.sha256(Path(image.path).read_bytes()).hexdigest()
        assert (image.width, image.height) == (24, 20)
        assert Path(image.path).is_absolute()
    splits = (tmp_path / "run/dataset/splits.json").read_bytes()
    assert summary["splits_sha256"] == hashlib.sha256(splits).hexdigest()
    frozen = json.loads(splits)
    assert frozen["classes"] == ["cat", "dog"]
    assert sorted(row["id"] for row in frozen["images"]) == sorted(image.id for image in images)
    json.dumps(summary)


def test_the_same_data_elsewhere_gives_the_same_ids_and_splits(tmp_path):
    _, _, first = run(recipe_for(pets(tmp_path / "one/pets")), tmp_path / "a")
    _, _, second = run(recipe_for(pets(tmp_path / "two/pets")), tmp_path / "b")
    assert [(i.id, i.split) for i in first] == [(i.id, i.split) for i in second]
    _, _, third = run(recipe_for(tmp_path / "two/pets", seed=1), tmp_path / "c")
    assert {i.id: i.split for i in third} != {i.id: i.split for i in first}


def test_checking_writes_nothing_and_changes_are_noticed(tmp_path):
    data = pets(tmp_path / "pets")
    before = sorted(tmp_path.rglob("*"))
    recipe = recipe_for(data)
    facts = stage.check(recipe)
    key = stage.inputs(recipe)
    assert facts.counts()["test"] == {"cat": 3, "dog": 3}
    assert sorted(tmp_path.rglob("*")) == before
    assert stage.inputs(recipe) == key
    paint(data / "cat/new.png", 77)
    assert stage.inputs(recipe) != key
    assert len(stage.check(recipe).images) == 21
    key, (one, other) = stage.inputs(recipe), sorted((data / "cat").glob("*.png"))[:2]
    content = one.read_bytes()
    one.write_bytes(other.read_bytes()), other.write_bytes(content)
    assert stage.inputs(recipe) != key, "two images changed places: same names, same sizes in all"


def test_a_table_with_everything(tmp_path):
    rows = []
    for k in range(12):
        paint(tmp_path / f"img/{k}.png", k)
        rows.append(
            {"file_name": f"img/{k}.png", "label": "ab"[k % 2], "group": f"g{k // 2}", "caption": f"number {k}"}
        )
    paint(tmp_path / "mask.png", 99)
    rows[0]["mask"] = "mask.png"
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    _, _, images = run(recipe_for(tmp_path / "t.jsonl"), tmp_path / "run")
    sides = {(image.group, image.split) for image in images}
    assert len(sides) == len({image.group for image in images}) == 6
    assert sorted(image.caption for image in images) == sorted(row["caption"] for row in rows)
    assert [image.mask for image in images if image.mask] == [str(tmp_path / "mask.png")]
    (tmp_path / "mask.png").write_bytes(b"")
    assert f"img/0.png: its mask {tmp_path / 'mask.png'} is empty" in refused(recipe_for(tmp_path / "t.jsonl"))


def test_extra_test_sets_are_frozen_apart(tmp_path):
    data = pets(tmp_path / "pets/train", n=5)
    pets(data.parent / "test", n=4, first=50)
    pets(data.parent / "test_uncommon", n=3, names=("dog",), first=5000)
    shutil.copy(data / "dog/1.png", data.parent / "test_uncommon/dog/leak.png")
    summary, _, images = run(recipe_for(data.parent, shots=2), tmp_path / "run")
    assert summary["line"].endswith(
        "2 classes, 4 train, 2 val, 8 test, 4 test_uncommon (1 copies across splits left out)"
    )
    assert summary["counts"]["test_uncommon"] == {"cat": 0, "dog": 4}
    assert not {image.sha256 for image in images if image.split == "train"} & {
        image.sha256 for image in images if image.split == "test_uncommon"
    }
    assert not any("too few images to test on" in warning for warning in summary["warnings"])


def test_a_class_that_only_an_extra_test_set_has_is_refused(tmp_path):
    data = pets(tmp_path / "pets/train", n=5)
    pets(data.parent / "test", n=4, first=50)
    pets(data.parent / "test_uncommon", n=3, names=("cow",), first=5000)
    assert "class 'cow': has no training image, only images in test_uncommon" in refused(recipe_for(data.parent))


def test_an_extra_test_set_is_not_the_test_set(tmp_path):
    data = pets(tmp_path / "pets/train", n=10)
    pets(data.parent / "test_set", n=4, first=50)
    facts = stage.check(recipe_for(data.parent))
    assert sum(facts.counts()["test"].values()) == 6
    assert any("held out as test" in warning for warning in facts.warnings)


def test_a_table_with_extra_test_sets_and_context_groups(tmp_path):
    """Waterbirds: the group is the background, of which every split has all; as subjects they could not be told apart."""
    rows = ["file_name,label,split,group"]
    for k in range(40):
        split = ("train", "train", "test", "test_odd")[k % 4]
        paint(tmp_path / f"{k}.png", k)
        rows.append(f"{k}.png,{'cat' if k < 20 else 'dog'},{split},{'land' if k % 3 else 'water'}")
    (tmp_path / "pets.csv").write_text("\n".join(rows))
    facts = stage.check(recipe_for(tmp_path / "pets.csv", group_is="context"))
    assert {split: sum(found.values()) for split, found in facts.counts().items()} == {
        "train": 16, "val": 4, "test": 10, "test_odd": 10
    }  # fmt: skip
    assert not any("groups in more than one split" in warning for warning in facts.warnings)
    as_subjects = stage.check(recipe_for(tmp_path / "pets.csv"))
    assert any("groups in more than one split" in warning for warning in as_subjects.warnings)


def test_the_meadows_uncommon_test_set(tmp_path):
    meadow = {"n_species": 2, "n_per_species": 3, "n_val": 1, "n_test": 4}
    biased = {**meadow, "habitat_bias": 1.0}
    plain = run(recipe_for("builtin:meadow", size_px=32, meadow=biased), tmp_path / "plain")[2]
    more = run(recipe_for("builtin:meadow", size_px=32, meadow={**biased, "uncommon_test": True}), tmp_path / "more")[2]
    extra = [image for image in more if image.split == "test_uncommon_context"]
    assert {image.id for image in plain} == {image.id for image in more} - {image.id for image in extra}
    assert len(extra) == 8
    seen = {(image.label, image.group) for image in more if image.split == "train"}
    assert not seen & {(image.label, image.group) for image in extra}
    with pytest.raises(ValueError, match="set habitat_bias"):
        recipe_for("builtin:meadow", meadow={**meadow, "uncommon_test": True})


def test_threads_that_ask_at_once_have_a_part_of_the_meadow_drawn_once(monkeypatch):
    drawn = []

    def slowly(*arguments, split, **options):
        drawn.append(split)
        time.sleep(0.05)
        return make_meadow(*arguments, split=split, **options)

    monkeypatch.setattr(builtin, "make_meadow", slowly)
    builtin._make.cache_clear()
    meadow = {"n_species": 2, "n_per_species": 8, "n_val": 8, "n_test": 8, "seed": 77}  # more of a part than threads
    images = read_source(recipe_for("builtin:meadow", size_px=32, meadow=meadow)).images
    with ThreadPoolExecutor(8) as threads:
        contents = set(threads.map(lambda image: image.content(), images))
    assert len(contents) == 48 and sorted(drawn) == ["test", "train", "val"]


def test_shots_and_tails_touch_training_only(tmp_path):
    data = pets(tmp_path / "pets", n=20, names=("a", "b", "c"))
    whole = stage.check(recipe_for(data)).counts()
    few = stage.check(recipe_for(data, shots=3)).counts()
    assert few == {**whole, "train": {"a": 3, "b": 3, "c": 3}}
    tail = stage.check(recipe_for(data, imbalance=10)).counts()
    assert tail == {**whole, "train": {"a": 11, "b": 3, "c": 1}}
    facts = stage.check(recipe_for(data, shots=100))
    assert facts.warnings == ("fewer than 100 training images: a, b, c",)


def test_copies_across_splits_are_left_out_and_told(tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        for k in range(6):
            paint(tmp_path / "pets" / split / "cat" / f"{k}.png", first + k)
            paint(tmp_path / "pets" / split / "dog" / f"{k}.png", first + 50 + k)
    paint(tmp_path / "pets/train/cat/leak.png", 103)
    paint(tmp_path / "pets/test/dog/wrong.png", 104)
    summary, _, images = run(recipe_for(tmp_path / "pets"), tmp_path / "run")
    assert summary["line"].endswith("2 classes, 10 train, 2 val, 13 test (1 copies across splits left out)")
    assert "1 images left out, because test or val has the same image: train/cat/leak.png" in summary["warnings"]
    assert "1 images have two different labels: test/cat/4.png = test/dog/wrong.png" in summary["warnings"]
    assert summary["duplicates"][0] == {
        "kept": ["test/cat/3.png"], "left_out": ["train/cat/leak.png"], "class_names": ["cat"]
    }  # fmt: skip
    hashes = {split: {i.sha256 for i in images if i.split == split} for split in ("train", "val", "test")}
    assert not hashes["train"] & hashes["test"]


def test_class_names_never_become_path_parts(tmp_path):
    rows = []
    for k in range(12):
        paint(tmp_path / f"{k}.png", k)
        rows.append(json.dumps({"file_name": f"{k}.png", "label": ("../../etc", "a/b\n<script>")[k % 2]}))
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    _, classes, _ = run(recipe_for(tmp_path / "t.jsonl"), tmp_path / "run")
    assert [one.slug for one in classes] == ["0000-etc", "0001-a-b-script"]


# ---------------------------------------------------------------------------------------------------- bad data


def test_every_broken_file_is_named_at_once_and_nothing_is_written(tmp_path):
    data = pets(tmp_path / "pets")
    whole = (data / "cat/1.png").read_bytes()
    (data / "cat/cut.png").write_bytes(whole[: len(whole) // 2])
    (data / "cat/none.png").write_bytes(b"")
    (data / "dog/text.jpg").write_text("hello\n")
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (data / "dog/bomb.png").write_bytes(bomb + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
    (data / "dog/gone.png").symlink_to(data / "nowhere.png")
    (data / "fox").mkdir()
    text = refused(recipe_for(data))
    for wanted in (
        "data has 6 problems",
        "cat/cut.png: is a truncated PNG file",
        "cat/none.png: is empty (0 bytes)",
        "dog/text.jpg: is a text file, not an image",
        "dog/bomb.png: is 50,000 x 50,000 px",
        "dog/gone.png: is a link to a file that does not exist",
        "class 'fox': has no image",
        "--set dataset.skip_unreadable=true",
    ):
        assert wanted in text
    with RunFolder.create(tmp_path / "run") as folder, pytest.raises(DataError):
        stage.run(Context(recipe_for(data), folder, QuietReporter()))
    assert not (tmp_path / "run/dataset").exists()
    (data / "fox").rmdir()
    summary, _, images = run(recipe_for(data, skip_unreadable=True), tmp_path / "skipping")
    assert summary["line"].endswith("(5 unreadable left out)")
    assert {"name": "cat/none.png", "reason": "is empty (0 bytes)"} in summary["unreadable"]
    assert len(images) == 20


def test_many_broken_files_are_counted(tmp_path):
    data = pets(tmp_path / "pets")
    for k in range(30):
        (data / f"cat/bad{k:02d}.png").write_bytes(b"")
    text = refused(recipe_for(data))
    assert text.count("is empty") == 10
    assert "and 20 more unreadable files — mend or remove them" in text


def test_what_cannot_be_learned_is_refused(tmp_path):
    assert "has only one class (cat)" in refused(recipe_for(pets(tmp_path / "one", names=("cat",))))
    only_test = tmp_path / "only-test"
    pets(only_test / "test")
    assert "has no training images" in refused(recipe_for(only_test))
    missing = tmp_path / "missing"
    pets(missing / "train")
    pets(missing / "test", names=("cat", "dog", "emu"), first=100)
    assert "class 'emu': has no training image, only images in test" in refused(recipe_for(missing))
    leaked = tmp_path / "leaked"
    pets(leaked / "train")
    shutil.copytree(leaked / "train", leaked / "test")
    assert "has only training images that are in val or test too" in refused(recipe_for(leaked))
    paint(leaked / "train/dog/fresh.png", 5555)
    assert "class 'cat': has only training images that are in val or test too" in refused(recipe_for(leaked))
    assert "has no image to test on" in refused(recipe_for(pets(tmp_path / "single", n=1)))
    assert "too few images to validate on: cat, dog" in stage.check(recipe_for(pets(tmp_path / "two", n=2))).warnings
    unreadable = pets(tmp_path / "unreadable")
    (unreadable / "emu").mkdir()
    (unreadable / "emu/1.png").write_bytes(b"")
    assert "class 'emu': has no image that can be read" in refused(recipe_for(unreadable, skip_unreadable=True))


def test_an_edited_mask_is_noticed(tmp_path):
    pets(tmp_path / "img")
    rows = [
        {"file_name": f"img/{name}/{k}.png", "label": name, "mask": "mask.png"}
        for name in ("cat", "dog")
        for k in range(10)
    ]
    (tmp_path / "pets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    paint(tmp_path / "mask.png", 1)
    before = stage.inputs(recipe_for(tmp_path / "pets.jsonl"))
    paint(tmp_path / "mask.png", 2)
    assert stage.inputs(recipe_for(tmp_path / "pets.jsonl")) != before


def test_accents_of_a_mac_are_the_same_letters(tmp_path):
    composed, apart = "cr\u00e8me", "cre\u0300me"
    pets(tmp_path / "train", names=(apart, "tea"))
    pets(tmp_path / "test", names=(composed, "tea"), first=5000)
    _, classes, _ = run(recipe_for(tmp_path), tmp_path.parent / "run")
    assert [info.name for info in classes] == [composed, "tea"]


def test_groups_that_cannot_be_held_out_are_the_reason_that_is_given(tmp_path):
    pets(tmp_path / "img")
    rows = [
        {"file_name": f"img/{name}/{k}.png", "label": name, "group": name} for name in ("cat", "dog") for k in range(10)
    ]
    (tmp_path / "pets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = refused(recipe_for(tmp_path / "pets.jsonl"))
    assert "its groups stay whole" in text and "dataset.group_is=context" in text


def test_one_test_image_is_too_few_and_told_before_anything_slow(tmp_path):
    pets(tmp_path / "train")
    paint(tmp_path / "test/cat/0.png", 9000)
    assert "has one image in test, and an interval needs two" in refused(recipe_for(tmp_path))


def test_small_classes_are_told(tmp_path):
    data = pets(tmp_path / "pets")
    paint(data / "emu/1.png", 9000)
    facts = stage.check(recipe_for(data))
    assert facts.counts()["train"]["emu"] == 1
    assert facts.warnings == ("too few images to validate on: emu", "too few images to test on: emu")
    enlarged = stage.check(recipe_for(pets(tmp_path / "b"), size_px=32))
    assert enlarged.warnings == ("20 images are smaller than dataset.size_px 32 and are enlarged",)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("builtin:medow", "did you mean builtin:meadow?"),
        ("builtin:x", "built in: digits, meadow"),
        ("meadow", "did you mean builtin:meadow?"),
        ("brids", "does not exist — did you mean birds?"),
        ("brids/train", "did you mean birds?"),
        ("birds/cat/0.png", "is a single image; a classifier needs several images of every class — give the folder"),
        ("birds.zip", "unpack it"),
        ("notes.md", "is no table of images"),
        ("", "names no data"),
        ("zzz", "there is no 'zzz' in"),
        ("hf:./nowhere", "this folder does not exist"),
        ("hf:some/thing", "offline mode is on (HF_HUB_OFFLINE)"),
    ],
)
def test_data_that_is_not_there(data, wanted):
    pets(Path("birds"), n=1)
    Path("birds.zip").write_bytes(b"PK")
    Path("notes.md").write_text("hi")
    assert wanted in refused(recipe_for(data))


def test_a_run_folder_and_a_parquet_folder_are_not_class_folders(tmp_path):
    run(recipe_for(pets(tmp_path / "pets")), tmp_path / "run")
    assert "is a run folder" in refused(recipe_for(tmp_path / "run"))
    (tmp_path / "hub/data").mkdir(parents=True)
    (tmp_path / "hub/data/train.parquet").write_bytes(b"PAR1")
    assert f"give it as hf:{tmp_path / 'hub'}" in refused(recipe_for(tmp_path / "hub"))


# ---------------------------------------------------------------------------------------------------- built in


def test_the_meadow_is_drawn_into_the_run_folder(tmp_path):
    meadow = {"n_species": 3, "n_per_species": 4, "n_val": 2, "n_test": 3}
    recipe = recipe_for("builtin:meadow", size_px=32, meadow=meadow)
    summary, classes, images = run(recipe, tmp_path / "run")
    assert summary["line"] == "builtin:meadow: 3 classes, 12 train, 6 val, 9 test"
    assert stage.check(recipe).line() == summary["line"]
    assert all(one.description.startswith("butterfly with ") for one in classes)
    assert sorted({image.path.removeprefix(f"{tmp_path}/run/").split("/")[1] for image in images}) == [
        "test",
        "train",
        "val",
    ]
    for image in images:
        assert image.caption.startswith(f"a photo of a {classes[image.label].description}, ")
        assert image.group in image.caption or image.group == "petals"
        assert image.sha256 == hashlib.sha256(Path(image.path).read_bytes()).hexdigest()
    assert load_squares([Path(image.path) for image in images], 32).shape == (27, 32, 32, 3)
    _, _, again = run(recipe, tmp_path / "again")
    assert [image.id for image in again] == [image.id for image in images]
    assert {image.split for image in images if image.mask} == {"train", "val"}
    for image in images:
        if image.mask:
            mask = load_mask(Path(image.mask), 32)
            assert 0.05 < mask.mean() < 0.7


def test_a_finished_stage_is_redone_only_where_its_images_are_gone(tmp_path):
    recipe = recipe_for(
        "builtin:meadow", size_px=32, meadow={"n_species": 2, "n_per_species": 1, "n_val": 1, "n_test": 1}
    )
    lines: list[str] = []

    class Listening(QuietReporter):
        def line(self, text: str) -> None:
            lines.append(text)

    with RunFolder.create(tmp_path / "run") as folder:
        for _ in range(2):
            run_stages(Context(recipe, folder, Listening()), "dataset")
        images = folder.real_images()
        Path(images[0].path).unlink()
        run_stages(Context(recipe, folder, Listening()), "dataset")
        assert folder.real_images() == images
        assert all(Path(image.path).is_file() for image in images)
    assert ["already done" in line for line in lines] == [False, True, False]


def test_the_seed_changes_the_meadows_training_images_only(tmp_path):
    meadow = {"n_species": 2, "n_per_species": 3, "n_val": 2, "n_test": 2}
    ids = []
    for seed in (0, 1):
        _, classes, images = run(recipe_for("builtin:meadow", seed, size_px=32, meadow=meadow), tmp_path / f"{seed}")
        ids.append({split: {i.id for i in images if i.split == split} for split in ("train", "val", "test")})
    assert ids[0]["test"] == ids[1]["test"]
    assert ids[0]["val"] == ids[1]["val"]
    assert not ids[0]["train"] & ids[1]["train"]


def test_the_meadow_has_as_many_images_as_shots_ask_for():
    meadow = {"n_species": 3, "n_per_species": 2, "n_val": 0, "n_test": 1}
    facts = stage.check(recipe_for("builtin:meadow", shots=7, size_px=32, meadow=meadow))
    assert facts.counts()["train"] == dict.fromkeys([one.name for one in facts.classes], 7)
    assert min(facts.counts()["val"].values()) == 2
    fewer = stage.check(recipe_for("builtin:meadow", shots=1, size_px=32, meadow={**meadow, "n_val": 1}))
    assert sum(fewer.counts()["train"].values()) == 3
    tail = stage.check(recipe_for("builtin:meadow", shots=10, imbalance=10, size_px=32, meadow={**meadow, "n_val": 1}))
    assert list(tail.counts()["train"].values()) == [10, 3, 1]
    assert "dataset.size_px=32" in refused(recipe_for("builtin:meadow", size_px=16))


def test_digits_are_named_and_split(tmp_path):
    summary, classes, images = run(
        recipe_for("builtin:digits", shots=1, val_fraction=0.02, test_fraction=0.02), tmp_path / "run"
    )
    assert sorted(one.name for one in classes) == sorted(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    assert summary["line"] == "builtin:digits: 10 classes, 10 train, 37 val, 39 test"
    assert {(image.width, image.height) for image in images} == {(16, 16)}


# ---------------------------------------------------------------------------------------------------- hf:


def test_hugging_face_folders(tmp_path):
    for split, first in (("train", 0), ("test", 100)):
        pets(tmp_path / "hub" / split, n=5, first=first)
    summary, classes, images = run(recipe_for(f"hf:{tmp_path / 'hub'}"), tmp_path / "run")
    assert [one.name for one in classes] == ["cat", "dog"]
    assert summary["line"].endswith("hub: 2 classes, 8 train, 2 val, 10 test")
    stored = sorted((tmp_path / "hub").rglob("*.png"))
    assert sorted(image.sha256 for image in images) == sorted(
        hashlib.sha256(p.read_bytes()).hexdigest() for p in stored
    )


def test_hugging_face_parquet_with_class_labels(tmp_path):
    import datasets

    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["rose", "iris"]), "k": datasets.Value("int64")}
    )
    for split, first in (("train", 0), ("validation", 100), ("test", 200), ("extra", 300)):
        folder = tmp_path / "made" / split
        for k in range(6):
            paint(folder / f"{k}.png", first + k)
        rows = {"img": [{"bytes": (folder / f"{k}.png").read_bytes(), "path": None} for k in range(6)],
                "fine": [k % 2 for k in range(5)] + [-1], "k": list(range(6))}  # fmt: skip
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / f"hub/data/{split}-00000-of-00001.parquet"
        )
    text = refused(recipe_for(f"hf:{tmp_path / 'hub'}"))
    assert "--set dataset.image_column=img" in text
    assert "--set dataset.label_column=fine" in text
    assert "holds no images" in refused(recipe_for(f"hf:{tmp_path / 'hub'}", image_column="k", label_column="fine"))
    recipe = recipe_for(f"hf:{tmp_path / 'hub'}", image_column="img", label_column="fine")
    summary, classes, images = run(recipe, tmp_path / "run")
    assert [one.name for one in classes] == ["iris", "rose"]
    assert Counter(image.split for image in images) == {"train": 5, "val": 5, "test": 5}
    assert "1 images of train have no label and are not used" in summary["warnings"]
    for image in images:
        assert image.path.startswith(str(tmp_path / "run/dataset/hf"))
        assert hashlib.sha256(Path(image.path).read_bytes()).hexdigest() == image.sha256
    assert stage.inputs(recipe) == stage.inputs(recipe)


def test_hugging_face_data_is_listed_once_a_start_and_anew_at_the_next(tmp_path, monkeypatch):
    import datasets

    import variegate

    load, loaded = datasets.load_dataset, []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **keys: loaded.append(args) or load(*args, **keys))
    pets(tmp_path / "hub" / "train", n=6)
    keys = {"recipe": "none", "overrides": ["dataset.size_px=16"], "last": "dataset"}
    variegate.run(f"hf:{tmp_path / 'hub'}", out=tmp_path / "run", **keys)
    assert len(loaded) == 1
    pets(tmp_path / "hub" / "train", n=6, names=("owl",), first=5000)
    again = variegate.run(f"hf:{tmp_path / 'hub'}", out=tmp_path / "run", **keys)
    assert "3 classes" in again.summaries["dataset"]["line"]


def test_hugging_face_parts_of_one_split_keep_their_images_apart(tmp_path):
    import datasets

    parts = {}
    for first, name in enumerate(("train", "trainval", "test")):
        pets(tmp_path / name, n=3, first=100 * first)
        files = sorted((tmp_path / name).rglob("*.png"))
        columns = {"image": list(map(str, files)), "label": [file.parent.name for file in files]}
        parts[name] = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "hub")
    _, _, images = run(recipe_for(f"hf:{tmp_path / 'hub'}"), tmp_path / "run")
    assert len({image.path for image in images}) == len(images) == 18
    for image in images:
        path = tmp_path / "run" / image.path
        assert hashlib.sha256(path.read_bytes()).hexdigest() == image.sha256


@pytest.mark.parametrize("values", [[0.0, 1.0, float("nan")], [[0, 1], [1], [0]]], ids=["decimals", "lists"])
def test_hugging_face_columns_that_name_no_classes_are_refused(tmp_path, values):
    import datasets

    files = sorted(pets(tmp_path / "made", n=3, names=("cat",)).rglob("*.png"))
    made = datasets.Dataset.from_dict({"image": list(map(str, files)), "label": values})
    made.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "hub")
    text = refused(recipe_for(f"hf:{tmp_path / 'hub'}"))
    assert "holds neither names nor whole numbers" in text and "dataset.label_column=NAME" in text


def test_hugging_face_data_without_a_class_column_says_what_it_has(tmp_path):
    import datasets

    paint(tmp_path / "0.png", 0)
    (tmp_path / "hub").mkdir()

    def refusal(**columns: object) -> str:
        rows = {"image": [str(tmp_path / "0.png")], **{name: [value] for name, value in columns.items()}}
        made = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        made.to_parquet(tmp_path / "hub/train.parquet")
        return refused(recipe_for(f"hf:{tmp_path / 'hub'}"))

    said = refusal(text="a cat", species="cat", size=1.5)
    assert "has no column 'label' (it has image (Image), text (Value), species (Value), size (Value))" in said
    assert "which of these names the class: species, text? --set dataset.label_column=NAME" in said
    assert "did you mean labels? --set dataset.label_column=NAME" in refusal(labels="cat")
    assert "sort the images into class folders" in refusal(size=1.5)


# ---------------------------------------------------------------------------------------------------- real images


def test_rare_animals(shared_data, tmp_path):
    recipe = recipe_for(shared_data / "rare-animals-64", size_px=64, shots=5)
    summary, _, images = run(recipe, tmp_path / "run")
    assert summary["line"].endswith("24 classes, 120 train, 288 val, 1,200 test")
    assert load_squares([Path(image.path) for image in images[:50]], 64).std() > 20


def test_everyday_objects(shared_data, tmp_path):
    data = tmp_path / "coco"
    shutil.copytree(shared_data / "custom-coco-128", data)
    victims = sorted(data.rglob("*.webp"))[::200]
    for path in victims:
        path.write_bytes(path.read_bytes()[:-40])
    text = refused(recipe_for(data))
    assert text.count("is a truncated WEBP file") == len(victims)
    facts = stage.check(recipe_for(data, skip_unreadable=True))
    assert len(facts.images) == 984 - len(victims)
    assert len(facts.classes) == 23
