"""Read an image table that `variegate import` wrote, for training: every picture by its bytes, every class by its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from variegate.errors import DataError, Problem
from variegate.files import file_sha256
from variegate.importers.csv_files import shortened
from variegate.importers.names import spellings
from variegate.records import SyntheticImage, content_id

NOTE = "import.json"
TABLE = "metadata.jsonl"
AGAIN = "import it again with variegate import"


@dataclass(frozen=True, slots=True)
class ImageTable:
    """Its images, with absolute paths; labels number `class_names`."""

    class_names: tuple[str, ...]
    images: tuple[SyntheticImage, ...]
    sha256: tuple[str, ...]  # of each image's file


def is_table(root: str | Path) -> bool:
    """Whether a folder is an image table that import wrote."""
    return all((Path(root) / name).is_file() for name in (NOTE, TABLE))


def read_table(root: Path, class_names: Sequence[str] = ()) -> ImageTable:
    """The table with labels of `class_names`, by name; of its own names, sorted, without them.

    Raises DataError with every row that is not understood, every class that is not among them, and images that are gone.
    """
    rows = _rows(root / TABLE)
    names = sorted({row[key] for row in rows for key in ("class_name", "source_class") if row[key] is not None})
    known = tuple(class_names) or tuple(names)
    label, problems = _labels(names, known, root)
    paths = [root / row["file_name"] for row in rows]
    gone = [path for path in paths if not path.is_file()]
    if gone:
        text = f"{len(gone):,} of its {len(paths):,} images are gone, such as {gone[0]}"
        problems.append(Problem(str(root), text, f"put them back, or {AGAIN}"))
    if problems:
        raise DataError(problems)
    digests = tuple(_sha256(path) for path in paths)
    images = (_image(*one, label) for one in zip(rows, paths, digests, strict=True))
    return ImageTable(known, tuple(images), digests)


def _image(row: dict[str, Any], path: Path, digest: str, label: dict[str, int]) -> SyntheticImage:
    """A row as the run's own images are; its id changes with the picture and with all that its label comes from."""
    source, strength = row["source_class"], 1.0 if row["strength"] is None else row["strength"]
    return SyntheticImage(
        id=content_id(digest, row["class_name"], source, strength),
        path=str(path.absolute()),
        source=None,  # other tools do not tell which image it was
        source_label=None if source is None else label[source],
        target=label[row["class_name"]],
        prompt=row["prompt"] or "",
        strength=strength,
    )


def _labels(names: Sequence[str], known: Sequence[str], root: Path) -> tuple[dict[str, int], list[Problem]]:
    """The label of every name of the table, equal up to underscores, slashes and spaces."""
    place, labels, problems = {name: label for label, name in enumerate(known)}, {}, []
    for name, same in spellings(names, known).items():
        if len(same) == 1:
            labels[name] = place[same[0]]
        elif same:
            problems.append(Problem(str(root), f"{name!r} may be any of {', '.join(map(repr, same))}", "rename one"))
        else:
            remedy = "rename it there, or import the table again with --classes FILE, the names of your data"
            problems.append(Problem(str(root), f"has the class {name!r}, and the data have not", remedy))
    return labels, problems


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as exc:
        raise DataError(Problem(str(path), f"is no UTF-8 text: {exc}", AGAIN)) from exc
    rows, problems = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if _is_row(row):
            rows.append(row)
        else:
            problems.append(Problem(f"{path} line {number}", "is no row of an image table", AGAIN))
    if problems:
        raise DataError(shortened(problems, path))
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not {"source_class", "prompt", "strength"} <= set(row):
        return False
    strength = row["strength"]
    return (
        all(isinstance(row.get(key), str) for key in ("file_name", "class_name"))
        and all(row[key] is None or isinstance(row[key], str) for key in ("source_class", "prompt"))
        and (strength is None or (isinstance(strength, int | float) and 0 < strength <= 1))
    )


def _sha256(path: Path) -> str:
    facts = path.stat()
    return _hashed(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=1 << 20)
def _hashed(path: Path, size: int, changed_ns: int) -> str:
    """A table is read several times in a run, by check, for its key and to train; its files are hashed once."""
    return file_sha256(path)
