"""Read `hf:org/name`, `hf:org/name:config` or `hf:./folder` by the datasets library, which obeys HF_HUB_OFFLINE."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variegate.errors import DataError, Problem
from variegate.images import read_content
from variegate.recipe import DatasetSection
from variegate.records import Split
from variegate.stages.dataset.listing import FoundImage, Listing, did_you_mean, enumerated, split_of

if TYPE_CHECKING:
    from datasets import Dataset

LABEL_DTYPES = (
    "string",
    "large_string",
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
)


def read_hub(name: str, dataset: DatasetSection) -> Listing:
    """List a Hugging Face data set: `image_column` holds the images, `label_column` class names, numbers or texts.

    Its train, validation, test and test_<word> splits keep their meaning, others are left out and named. Raises
    DataError where it cannot be loaded or has other columns.
    """
    shown = f"hf:{name}"
    parts = _load(name, shown)
    unused = [split for split in parts if split_of(split) is None]
    if len(parts) == 1 and unused:  # a data set that is not split at all may call its one part anything
        parts, unused = {"train": next(iter(parts.values()))}, []
    warnings = [f"splits that are not train, validation or test are not used: {enumerated(unused)}"] if unused else []
    images: list[FoundImage] = []
    revisions = []
    for split_name in sorted(set(parts) - set(unused)):
        part = parts[split_name]
        _check_columns(part, dataset, shown)
        split = None if len(parts) == 1 else split_of(split_name)
        found = _images(part, dataset, split_name, split)
        if len(found) < len(part):
            warnings.append(f"{len(part) - len(found):,} images of {split_name} have no label and are not used")
        images += found
        revisions.append(part._fingerprint)
    if not images:
        raise DataError(Problem(shown, "holds no labelled images", "choose another data set or dataset.label_column"))
    return Listing(shown, tuple(images), warnings=tuple(warnings), revision=" ".join(revisions))


def _load(name: str, shown: str) -> Mapping[str, Dataset]:
    import datasets

    path, _, config = name.partition(":")
    if path.startswith((".", "/", "~")):
        path = str(Path(path).expanduser())
        if not Path(path).exists():
            raise DataError(
                Problem(shown, "this folder does not exist", "hf:org/name is on the hub, hf:./folder is here")
            )
    datasets.disable_progress_bars()
    try:
        if (Path(path) / "dataset_dict.json").is_file() or (Path(path) / "state.json").is_file():
            loaded: Any = datasets.load_from_disk(path)
        else:
            loaded = datasets.load_dataset(path, name=config or None)
    except Exception as exc:  # network, missing, gated, scripts, bad files: the library has no common base for them
        raise DataError(Problem(shown, _why(exc), _remedy(path, exc))) from exc
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def _why(exc: Exception) -> str:
    first = next((line.strip() for line in str(exc).splitlines() if line.strip()), "")
    return f"cannot be loaded: {first or type(exc).__name__}"


def _remedy(path: str, exc: Exception) -> str:
    text = str(exc)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on") or "ffline" in text:
        return "offline mode is on (HF_HUB_OFFLINE): download it first where there is a network, or give a local folder"
    if path.startswith((".", "/")):
        return "check the folder: images in class folders, or Parquet files with an image column"
    if "onfig" in text and "missing" in text:
        return f"name one of its configurations: hf:{path}:CONFIG"
    return "check the name and the network; private data sets need HF_TOKEN; or give a local folder: hf:./folder"


def _check_columns(part: Dataset, dataset: DatasetSection, shown: str) -> None:
    import datasets

    problems = []
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in part.features.items())
    by_kind: dict[str, list[str]] = {
        "image_column": [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)],
        "label_column": [name for name, feature in part.features.items() if isinstance(feature, datasets.ClassLabel)],
    }
    for key, fitting in by_kind.items():
        column = getattr(dataset, key)
        if column not in part.features:
            remedy = f"--set dataset.{key}={fitting[0]}" if fitting else _column_remedy(key, column, part)
            problems.append(Problem(shown, f"has no column {column!r} (it has {columns})", remedy))
    image = part.features.get(dataset.image_column)
    if image is not None and not (isinstance(image, datasets.Image) or getattr(image, "dtype", "") == "binary"):
        problems.append(Problem(shown, f"column {dataset.image_column!r} holds no images (it has {columns})"))
    label = part.features.get(dataset.label_column)
    if label is not None and not (
        isinstance(label, datasets.ClassLabel) or getattr(label, "dtype", "") in LABEL_DTYPES
    ):
        text = f"column {dataset.label_column!r} holds neither names nor whole numbers (it has {columns})"
        remedy = "store labels as text or whole numbers, or name another column: --set dataset.label_column=NAME"
        problems.append(Problem(shown, text, remedy))
    if problems:
        raise DataError(problems)


def _column_remedy(key: str, column: str, part: Dataset) -> str:
    """What to do where no column is of the kind that is looked for."""
    texts = [name for name, feature in part.features.items() if getattr(feature, "dtype", "") in LABEL_DTYPES]
    if key == "image_column":
        return did_you_mean(
            column, list(part.features), "--set dataset.image_column=NAME names the one that holds images"
        )
    if not texts:
        return "no column can name classes: choose data with labels, or sort the images into class folders"
    near = did_you_mean(column, texts, f"which of these names the class: {enumerated(texts)}?")
    return f"{near} --set dataset.label_column=NAME"


def _images(part: Dataset, dataset: DatasetSection, split_name: str, split: Split | None) -> list[FoundImage]:
    import datasets

    feature = part.features[dataset.label_column]
    raw = part.cast_column(dataset.image_column, datasets.Image(decode=False))
    found = []
    for row, label in enumerate(part[dataset.label_column]):
        if label is None or label == -1 or label == "":  # -1: what test sets with hidden labels hold
            continue
        class_name = feature.int2str(label) if isinstance(feature, datasets.ClassLabel) else str(label)
        content = partial(_bytes, raw, row, dataset.image_column)
        found.append(FoundImage(f"{split_name}/{row:07d}", class_name, split, content))
    return found


def _bytes(raw: Dataset, row: int, column: str) -> bytes:
    """The file's bytes as they were stored; an absent image gives none, which decoding reports."""
    value = raw[row][column]
    if value is None:
        return b""
    return value["bytes"] if value["bytes"] is not None else read_content(Path(value["path"]))
