"""Folders of class folders as people have them: odd names, links, litter, and layouts that are not quite right."""

from __future__ import annotations

import os
from pathlib import Path

from variegate.stages.dataset.folder import read_folder
from variegate.stages.dataset.listing import Listing


def plant(root: Path, *names: str) -> Path:
    """Files of some bytes; listing a folder opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def names_of(listing: Listing) -> list[str]:
    return [image.name for image in listing.images]


def problem_of(listing: Listing) -> str:
    (problem,) = listing.problems
    return str(problem)


def test_class_folders(tmp_path):
    listing = read_folder(plant(tmp_path, "dog/2.png", "dog/1.JPG", "cat/1.webp"), "pets")
    assert names_of(listing) == ["cat/1.webp", "dog/1.JPG", "dog/2.png"]
    assert [image.class_name for image in listing.images] == ["cat", "dog", "dog"]
    assert {image.split for image in listing.images} == {None}
    assert listing.images[0].content == tmp_path / "cat/1.webp"
    assert (listing.problems, listing.warnings) == ((), ())


def test_split_folders_by_their_usual_names(tmp_path):
    for names in (("train", "val", "test"), ("Training", "VALID", "Testing"), ("train-val", "validation", "test")):
        root = plant(tmp_path / names[0], *(f"{split}/cat/{k}.png" for split in names for k in range(2)))
        listing = read_folder(root, "pets")
        assert {image.split for image in listing.images} == {"train", "val", "test"}
        assert {image.class_name for image in listing.images} == {"cat"}
        assert len(listing.images) == 6


def test_extra_test_sets_beside_test(tmp_path):
    """DIAGen's layout: train-val, test and test_uncommon_context."""
    names = ("train-val", "test", "test_uncommon_context", "test-Night")
    listing = read_folder(plant(tmp_path, *(f"{split}/cat/1.png" for split in names)), "pets")
    assert {image.split for image in listing.images} == {"train", "test", "test_uncommon_context", "test_night"}
    assert {image.class_name for image in listing.images} == {"cat"}


def test_classes_may_be_called_like_extra_test_sets(tmp_path):
    listing = read_folder(plant(tmp_path, "test_positive/1.png", "test_negative/1.png"), "strips")
    assert [(image.class_name, image.split) for image in listing.images] == [
        ("test_negative", None),
        ("test_positive", None),
    ]


def test_a_class_may_be_called_train(tmp_path):
    listing = read_folder(plant(tmp_path, "bus/1.png", "train/1.png", "tram/1.png"), "vehicles")
    assert [image.class_name for image in listing.images] == ["bus", "train", "tram"]
    assert listing.problems == ()


def test_splits_and_classes_side_by_side_are_refused(tmp_path):
    listing = read_folder(plant(tmp_path, "train/cat/1.png", "test/cat/1.png", "dog/1.png"), "pets")
    assert "has split folders (test, train) and other folders (dog) side by side" in problem_of(listing)


def test_a_test_folder_beside_the_classes_it_holds_is_no_class(tmp_path):
    listing = read_folder(plant(tmp_path, "cat/1.png", "dog/1.png", "test/cat/1.png", "test/dog/1.png"), "pets")
    assert "has split folders (test) and other folders (cat, dog) side by side" in problem_of(listing)


def test_what_programs_leave_behind_is_no_class(tmp_path):
    litter = ("cat/1.png", "dog/1.png", "@eaDir/1.png", ".ipynb_checkpoints/1.png")
    assert {image.class_name for image in read_folder(plant(tmp_path, *litter), "pets").images} == {"cat", "dog"}


def test_odd_names_work(tmp_path):
    classes = [
        "Crème brûlée",
        "two words",
        "🦋 papillon",
        "x" * 200,
        "Cat",
        "cat",
        "a+b (c) [d]",
        "-rf",
        "100%",
        "'; --",
        "CON",
    ]
    listing = read_folder(plant(tmp_path, *(f"{name}/im age é.jpg" for name in classes)), "odd")
    assert sorted({image.class_name for image in listing.images}) == sorted(classes)
    assert listing.problems == ()


def test_hidden_things(tmp_path):
    litter = ".git/HEAD", ".cache/a/b.png", "cat/.hidden.png", "cat/.x/2.png", "cat/._1.png", "__MACOSX/cat/._1.png"
    listing = read_folder(plant(tmp_path, ".net/1.png", "cat/1.png", ".DS_Store", *litter), "pets")
    assert names_of(listing) == [".net/1.png", "cat/1.png"]
    assert listing.problems == ()
    assert listing.empty_classes == ()


def test_folders_inside_a_class_are_walked(tmp_path):
    listing = read_folder(plant(tmp_path, "cat/2023/may/1.png", "cat/2.png", "dog/a/b/c/d/e/3.png"), "pets")
    assert names_of(listing) == ["cat/2.png", "cat/2023/may/1.png", "dog/a/b/c/d/e/3.png"]
    assert [image.class_name for image in listing.images] == ["cat", "cat", "dog"]


def test_other_files_are_counted_and_named_images_are_kept(tmp_path):
    listing = read_folder(
        plant(tmp_path, "cat/1.png", "cat/Thumbs.db", "cat/notes.txt", "cat/phone.HEIC", "dog/1.png"), "pets"
    )
    assert "cat/phone.HEIC" in names_of(listing)  # decoding says what to do with it
    assert listing.warnings == ("2 files are no images by their name and were passed over",)


def test_links(tmp_path):
    plant(tmp_path, "store/1.png", "pets/dog/1.png", "pets/cat/0.png")
    (tmp_path / "pets/cat/1.png").symlink_to(tmp_path / "store/1.png")
    (tmp_path / "pets/cat/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "pets/fox").symlink_to(tmp_path / "store")
    listing = read_folder(tmp_path / "pets", "pets")
    assert names_of(listing) == ["cat/0.png", "cat/1.png", "cat/gone.png", "dog/1.png", "fox/1.png"]


def test_links_that_lead_back_are_not_followed_for_ever(tmp_path):
    root = plant(tmp_path / "pets", "cat/1.png", "cat/sub/2.png", "dog/1.png")
    (root / "cat/sub/up").symlink_to(root / "cat")
    (root / "dog/all").symlink_to(root)
    (root / "dog/above").symlink_to(tmp_path)
    (root / "dog/me.png").symlink_to(root / "dog/me.png")
    listing = read_folder(root, "pets")
    assert names_of(listing) == ["cat/1.png", "cat/sub/2.png", "dog/1.png", "dog/me.png"]
    assert sorted(problem.where for problem in listing.problems) == ["cat/sub/up", "dog/above", "dog/all"]
    assert all("remove the link" in problem.remedy for problem in listing.problems)


def test_empty_class_folders_are_told(tmp_path):
    root = plant(tmp_path, "cat/1.png", "dog/readme.txt")
    (root / "fox").mkdir()
    assert read_folder(root, "pets").empty_classes == ("dog", "fox")


def test_layouts_that_are_not_there(tmp_path):
    assert "holds no images — make one folder per class" in problem_of(read_folder(tmp_path, "pets"))
    flat = plant(tmp_path / "flat", "1.png", "2.png")
    assert "holds images but no class folders" in problem_of(read_folder(flat, "pets"))
    no_classes = plant(tmp_path / "no-classes", "train/1.png", "test/1.png")
    text = "\n".join(str(problem) for problem in read_folder(no_classes, "pets").problems)
    assert "test/: holds images but no class folders — make one folder per class" in text


def test_images_outside_the_classes_are_told(tmp_path):
    listing = read_folder(plant(tmp_path, "cat/1.png", "dog/1.png", "cover.jpg"), "pets")
    assert listing.warnings == ("1 images lie outside the class folders and are not used: cover.jpg",)


def test_names_that_are_no_text_are_refused(tmp_path):
    plant(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"x")
    assert "is a file name that is not valid UTF-8 — rename" in problem_of(read_folder(tmp_path, "pets"))


def test_earlier_runs_beside_the_classes_are_no_class(tmp_path):
    listing = read_folder(plant(tmp_path, "cat/1.png", "dog/1.png", "runs/a/run.db", "runs/a/synthetic/x.jpg"), ".")
    assert {image.class_name for image in listing.images} == {"cat", "dog"}
    assert listing.empty_classes == ()


def test_runs_and_notes_beside_the_splits_are_no_matter(tmp_path):
    names = "train/cat/1.png", "test/cat/1.png", "runs/a/run.db", "runs/a/synthetic/x.jpg", "annotations/1.txt"
    listing = read_folder(plant(tmp_path, *names), ".")
    assert names_of(listing) == ["test/cat/1.png", "train/cat/1.png"]
    assert listing.problems == ()
    assert listing.empty_classes == ()
