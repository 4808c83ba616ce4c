"""Synthetic images of Diff-Mix, DasDiff and DiffuseMix as an HF `imagefolder` table with soft labels.

No image is copied or changed: OUT/images is a link to their folder, because `datasets` reads no file outside OUT.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from variegate.errors import DataError, Problem
from variegate.files import write_atomic
from variegate.images import IMAGE_EXTENSIONS, check_images
from variegate.importers.csv_files import read_rows, shortened
from variegate.importers.found import Found
from variegate.importers.image_table import TABLE
from variegate.importers.names import matched
from variegate.records import soft_label

DIFF_MIX = ("First Directory", "Second Directory", "Number", "Strength", "Path")
DASDIFF = ("Path", "Target Class")
STAGES = ("generated", "concatenated", "blended")  # of DiffuseMix; blended is the method's result
TREE = ("original_resized", "fractal", *STAGES)
GAMMA = 0.5
LINK = "images"
NEXT = 'variegate train DATA --recipe none --set "train.pools=[{out}]" --set "evaluate.arms=[real, real+synthetic]"'
LOADED = 'datasets.load_dataset("imagefolder", data_dir=OUT) reads it too'
_DIFFUSEMIX = re.compile(
    r"(?P<file>.+)_(?P<stage>generated|concatenated|fractal|blended)_(?P<prompt>.+)_(?P<number>\d+)\.\w+"
)


@dataclass(frozen=True, slots=True)
class Image:
    """One synthetic image of another tool's; `source` is the class it was made from, None where it came from text."""

    name: str  # relative to the images' folder, with /
    target: str
    source: str | None
    strength: float | None = None
    prompt: str | None = None


def diff_mix_found(path: Path, classes: Sequence[str] | None) -> Found:
    """Diff-Mix's meta.csv; raises DataError with every wrong row."""
    rows, problems, images = read_rows(path, DIFF_MIX, ","), [], []
    for line, values in rows:
        where, strength = f"{path} line {line}", _number(values["Strength"])
        if strength is None or not 0 < strength <= 1:
            problems.append(Problem(where, f"Strength is {values['Strength']!r}, should be above 0 and at most 1"))
        if not values["Number"].isdigit():
            problems.append(Problem(where, f"Number is {values['Number']!r}, should be a whole number"))
        empty = [name for name in ("First Directory", "Second Directory") if not values[name]]
        problems += [Problem(where, f"{name} is empty") for name in empty]
        problems += _name_problems(where, values["Path"])
        images.append(Image(values["Path"], values["Second Directory"], values["First Directory"], strength=strength))
    if problems:
        raise DataError(shortened(problems, path))
    return _found("Diff-Mix", path, _data_folder(path), images, classes)


def dasdiff_found(path: Path, classes: Sequence[str] | None) -> Found:
    """The meta.csv of DasDiff's sibling; raises DataError with every wrong row."""
    problems, images = [], []
    for line, values in read_rows(path, DASDIFF, ","):
        where = f"{path} line {line}"
        if not values["Target Class"]:
            problems.append(Problem(where, "Target Class is empty"))
        problems += _name_problems(where, values["Path"])
        images.append(Image(values["Path"], values["Target Class"], None, strength=1.0))
    if problems:
        raise DataError(shortened(problems, path))
    return _found("DasDiff", path, _data_folder(path), images, classes)


def diffusemix_found(root: Path, classes: Sequence[str] | None) -> Found:
    """A DiffuseMix result folder (its blended images), or one of its stage folders."""
    stage = root.name if root.name in STAGES else "blended"
    folder = root if root.name in STAGES else root / stage
    if not folder.is_dir():
        there = [name for name in STAGES if (root / name).is_dir()]
        remedy = f"name one: {', '.join(str(root / name) for name in there)}" if there else "name its result folder"
        raise DataError(Problem(str(root), "has no folder blended, the result of DiffuseMix", remedy))
    images, strange = [], []
    for path in sorted(folder.glob("*/*")):
        match = _DIFFUSEMIX.fullmatch(path.name)
        if match and match["stage"] == stage:
            name = path.relative_to(folder).as_posix()
            images.append(Image(name, path.parent.name, path.parent.name, prompt=match["prompt"]))
        elif path.suffix.lower() in IMAGE_EXTENSIONS:
            strange.append(Problem(str(path), f"is not named FILE_{stage}_PROMPT_NUMBER.jpg", "move it away"))
    if strange or not images:
        raise DataError(shortened(strange, folder) or Problem(str(folder), "holds no images", "name another folder"))
    note = f"only the images of the stage {stage} are listed; others: name their folder" if folder != root else ""
    return _found("DiffuseMix", folder, folder, images, classes, [note] if note else [])


def is_diffusemix(root: Path) -> bool:
    """A folder with the stage folders of DiffuseMix, or one of those with images of that stage in it."""
    if sum((root / name).is_dir() for name in TREE) >= 2:
        return True
    return root.name in STAGES and any(_DIFFUSEMIX.fullmatch(path.name) for path in root.glob("*/*"))


# ------------------------------------------------------------------------------------------ table


def _found(
    system: str,
    path: Path,
    folder: Path,
    images: Sequence[Image],
    classes: Sequence[str] | None,
    notes: Sequence[str] = (),
) -> Found:
    """Check names and files, and describe the table."""
    names = sorted({image.target for image in images} | {image.source for image in images if image.source is not None})
    spelled, problems = (
        matched(names, classes, str(path)) if classes is not None else ({name: name for name in names}, [])
    )
    twice = _twice(image.name for image in images)
    problems += [Problem(str(path), f"lists {name} twice", "remove one of the rows") for name in twice[:10]]
    if problems:
        raise DataError(problems)
    labels = sorted(classes) if classes is not None else names
    checks = check_images([folder / image.name for image in images])
    broken = {image.name: check.reason for image, check in zip(images, checks, strict=True) if check.reason}
    if len(broken) == len(images):
        name, reason = next(iter(broken.items()))
        text = f"none of its {len(images):,} images can be read, for example {folder / name} {reason}"
        raise DataError(Problem(str(path), text, "put the images where the table says, in data/ beside it"))
    kept = [image for image in images if image.name not in broken]
    records = list(_records(kept, labels, spelled))

    def write(out: Path) -> None:
        if folder.resolve() in out.resolve().parents:
            raise DataError(Problem("--out", f"lies among the images, in {folder}", "choose a folder outside it"))
        (out / LINK).symlink_to(folder.resolve(), target_is_directory=True)
        lines = (f"{json.dumps(record, ensure_ascii=False)}\n".encode() for record in records)
        write_atomic(out / TABLE, lines)

    left_out = tuple(f"{name} ({reason})" for name, reason in broken.items())
    facts = _counts(images, kept, labels) | {"images_unusable": len(broken)}
    return Found(
        "image table", system, (path,), facts, write, NEXT, (*notes, *_notes(kept, classes, labels, folder)), left_out
    )


def _records(images: Iterable[Image], labels: Sequence[str], spelled: dict[str, str]) -> Iterable[dict[str, Any]]:
    """Rows as variegate's own synthetic/train/metadata.jsonl has them, as far as the other tool tells, sorted by name."""
    number = {name: label for label, name in enumerate(labels)}
    for image in sorted(images, key=lambda image: image.name):
        target = number[spelled[image.target]]
        source = None if image.source is None else number[spelled[image.source]]
        pairs = soft_label(source, target, 1.0 if image.strength is None else image.strength, gamma=GAMMA)
        yield {
            "file_name": f"{LINK}/{image.name}",
            "label": target,
            "class_name": spelled[image.target],
            "prompt": image.prompt,
            "strength": image.strength,
            "source_class": None if image.source is None else spelled[image.source],
            "soft_label": [{"label": label, "weight": weight} for label, weight in pairs],
        }


def _counts(images: Sequence[Image], kept: Sequence[Image], labels: Sequence[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {"rows": len(images), "images": len(kept), "classes": len(labels)}
    if strengths := sorted({image.strength for image in kept if image.strength is not None}):
        facts["strengths"] = strengths
    if prompts := sorted({image.prompt for image in kept if image.prompt is not None}):
        facts["prompts"] = prompts
    facts["between_classes"] = sum(image.source is not None and image.source != image.target for image in kept)
    return facts


def _notes(kept: Sequence[Image], classes: Sequence[str] | None, labels: Sequence[str], folder: Path) -> list[str]:
    notes = [f"{LINK} is a link to {folder.resolve()}: no image is copied or changed", LOADED]
    if any(image.source is not None and image.source != image.target for image in kept):
        notes.append(f"soft labels: gamma {GAMMA}, kappa 1 (Diff-Mix's code took kappa 0.9 silently)")
    if classes is None:
        notes.append(
            f"labels number the {len(labels):,} class names of the table, sorted; --classes FILE gives your data's"
        )
    return notes


# ------------------------------------------------------------------------------------------ names of files


def _data_folder(table: Path) -> Path:
    """Where a meta.csv's paths begin: data/ beside it."""
    return table.parent / "data" if (table.parent / "data").is_dir() else table.parent


def _name_problems(where: str, name: str) -> list[Problem]:
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name:
        return [Problem(where, f"Path is {name!r}, should be a file name with /")]
    if pure.is_absolute() or ".." in pure.parts or os.path.normpath(name) != name:
        return [Problem(where, f"Path is {name!r}, which leaves the folder of the images, or is not in plain form")]
    return []


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
