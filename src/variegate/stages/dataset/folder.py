"""Read a folder of class folders, optionally below train/, val/ and test/. Lists only: no image is opened here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from variegate.errors import Problem
from variegate.images import IMAGE_EXTENSIONS
from variegate.stages.dataset.listing import FoundImage, Listing, enumerated, is_text, shortened, split_of, split_words

_LITTER = ("__MACOSX", "@eaDir", ".ipynb_checkpoints")  # of zip files made on a Mac, network drives, notebooks
_LAYOUT = "make one folder per class, named after it, with its images inside"


@dataclass(slots=True)
class _Walk:
    """Image files found so far and what was passed over; `images` are names relative to the root."""

    found: list[FoundImage] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)  # classes without an image
    images: list[str] = field(default_factory=list)
    num_ignored: int = 0
    loops: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_folder(root: Path, shown: str) -> Listing:
    """List class folders of `root`; classes and images are sorted by name.

    Folders named train, val or test (and valid, validation, training, testing, train-val) are splits where every
    top-level folder has such a name, and test_<word> beside them is an extra test set. A class called `train` beside
    `bus` and `tram` stays a class.
    """
    walk = _Walk()
    tops = _class_folders(root, walk)
    splits = split_words(tops)
    layered = [name for name in splits if _class_folders(root / name, _Walk())]
    others = [name for name in tops if name not in splits and splits and holds_images(root, name)]
    same = {name for top in layered for name in _class_folders(root / top, _Walk())} & set(others)
    if others and (same or "train" in {split_of(name) for name in layered}):
        text = f"has split folders ({enumerated(splits)}) and other folders ({enumerated(others)}) side by side"
        remedy = "put every class folder below train/, val/ or test/, or none of them"
        return Listing(shown, problems=(Problem(shown, text, remedy),))
    if not splits or others:
        _add_classes(root, "", tops, walk)
        return _as_listing(shown, walk, _direct_images(root))
    for name in splits:
        _add_classes(root, name, _class_folders(root / name, walk), walk)
        if name not in layered and _direct_images(root / name):
            remedy = f"{_LAYOUT}; or move it away"
            walk.problems.append(Problem(f"{name}/", "holds images but no class folders", remedy))
    stray = [f"{name}/{image}" for name in layered for image in _direct_images(root / name)]
    return _as_listing(shown, walk, [*_direct_images(root), *stray])


def _as_listing(shown: str, walk: _Walk, stray: list[str]) -> Listing:
    images = sorted(walk.found, key=lambda image: image.name)
    empty = set(walk.empty) - {image.class_name for image in images}
    text, remedy = "is a link that leads back into a folder above it, a circle without end", "remove the link"
    loops = [Problem(name, text, remedy) for name in walk.loops]
    problems = shortened([*walk.problems, *loops], "such entries", "rename them or mend their permissions")
    if not images and not problems:
        what = "holds images but no class folders" if stray else "holds no images"
        problems = [Problem(shown, what, _LAYOUT)]
        empty = set()
    warnings = []
    if stray and images:
        warnings.append(f"{len(stray):,} images lie outside the class folders and are not used: {enumerated(stray)}")
    if walk.num_ignored:
        warnings.append(f"{walk.num_ignored:,} files are no images by their name and were passed over")
    return Listing(shown, tuple(images), tuple(problems), tuple(warnings), tuple(sorted(empty)))


def _add_classes(root: Path, top: str, class_names: Sequence[str], walk: _Walk) -> None:
    """Collect the images of class folders below `top`: a split folder, or "" for the root."""
    prefix, split = (f"{top}/", split_of(top)) if top else ("", None)
    above = _above(root / top)
    for class_name in class_names:
        before = len(walk.images)
        _walk_below(root, f"{prefix}{class_name}", walk, above)
        names = sorted(walk.images[before:])
        holds_runs = any(run.startswith(f"{prefix}{class_name}/") for run in walk.runs)
        if not names and not class_name.startswith(".") and not holds_runs:
            walk.empty.append(class_name)
        walk.found.extend(FoundImage(name, class_name, split, root / name) for name in names)


def holds_images(root: Path, name: str) -> bool:
    """Whether images lie anywhere below a folder, litter of other programs left out."""
    walk = _Walk()
    _walk_below(root, name, walk, _above(root))
    return bool(walk.images)


def _above(folder: Path) -> frozenset[tuple[int, int]]:
    """The folder and all that it lies in: a link to one of them would be followed in a circle."""
    whole = folder.resolve()
    return frozenset(_identity(one) for one in (whole, *whole.parents))


def _class_folders(folder: Path, walk: _Walk) -> list[str]:
    """Sub-folders that can be classes, sorted: hidden ones only where they hold an image directly."""
    names = []
    for entry in _entries(folder, walk, folder.name):
        if not _is_folder(entry) or entry.name in _LITTER:
            continue
        if not is_text(entry.name):
            walk.problems.append(Problem(repr(entry.name), "is a folder name that is not valid UTF-8"))
        elif not entry.name.startswith(".") or _direct_images(Path(entry.path)):
            names.append(entry.name)
    return names


def _direct_images(folder: Path) -> list[str]:
    entries = _entries(folder, _Walk(), "")
    return [entry.name for entry in entries if _looks_like_image(entry) and not _is_folder(entry)]


def _walk_below(root: Path, relative: str, walk: _Walk, above: frozenset[tuple[int, int]]) -> None:
    """Collect image files below a folder; `above` are the (device, inode) of the folders that lead here."""
    here = _identity(root / relative)
    if here in above:
        walk.loops.append(relative)
        return
    entries = _entries(root / relative, walk, relative)
    if any(entry.name == "run.db" for entry in entries):  # variegate's own output, where DATA is the current folder
        walk.runs.append(f"{relative}/")
        return
    for entry in entries:
        name = f"{relative}/{entry.name}"
        if entry.name.startswith(".") or entry.name in _LITTER:
            continue
        if _is_folder(entry):
            _walk_below(root, name, walk, above | {here})
        elif not _looks_like_image(entry):
            walk.num_ignored += 1
        elif not is_text(name):
            walk.problems.append(Problem(repr(name), "is a file name that is not valid UTF-8"))
        elif entry.is_symlink() or entry.is_file():  # a link to nothing counts: reading it tells
            walk.images.append(name)
        else:
            walk.num_ignored += 1  # pipes and devices


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _looks_like_image(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith(".") and Path(entry.name).suffix.lower() in IMAGE_EXTENSIONS


def _entries(folder: Path, walk: _Walk, shown: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as exc:
        walk.problems.append(Problem(shown, f"cannot be listed: {exc.strerror}"))
        return []
