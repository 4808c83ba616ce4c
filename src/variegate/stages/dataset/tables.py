"""Read a CSV, JSONL or Parquet table of images: `file_name,label` and optional `split, group, caption, mask`.

File names are relative to the table. A folder with a labelled metadata.jsonl (an HF imagefolder) is such a table too.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variegate.errors import Problem
from variegate.records import Split
from variegate.stages.dataset.listing import (
    SPLIT_WORDS,
    FoundImage,
    Listing,
    did_you_mean,
    is_text,
    shortened,
    split_of,
    split_words,
)

REQUIRED = ("file_name", "label")
OPTIONAL = ("split", "group", "caption", "mask")
TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")

Row = tuple[str, Mapping[str, Any]]  # ("birds.csv line 3", its values)


@dataclass(frozen=True, slots=True)
class _Columns:
    rows: list[Row]
    names: list[str]
    problems: list[Problem]


def read_table(path: Path, shown: str, *, split: Split | None = None, prefix: str = "") -> Listing:
    """List the images of a table; every wrong row is a problem, about ten of a kind are shown.

    `split` and `prefix` place the table of a split folder: its rows are of that split, its names start with `prefix`.
    """
    table = _read(path, f"{prefix}{path.name}")
    if table.problems:
        return Listing(shown, problems=tuple(table.problems))
    problems, warnings = _check_columns(table.names, _where(path, shown, prefix))
    if problems:
        return Listing(shown, problems=tuple(problems))
    images: list[FoundImage] = []
    wrong: list[Problem] = []
    missing: list[Problem] = []
    seen: dict[str, str] = {}
    for where, values in table.rows:
        found = _image(where, values, path.parent, split, prefix)
        if isinstance(found, Problem):
            (missing if found.what.endswith("does not exist") else wrong).append(found)
        elif found.name in seen:
            wrong.append(Problem(where, f"names {found.name} again, as {seen[found.name]} does"))
        else:
            seen[found.name] = where
            images.append(found)
    problems += shortened(wrong, "wrong rows", "correct the table")
    problems += shortened(missing, "missing files", f"file names are relative to {path.parent}")
    if not table.rows:
        problems.append(Problem(_where(path, shown, prefix), "has no rows", "one row per image: file_name,label"))
    images.sort(key=lambda image: image.name)
    return Listing(shown, tuple(images), tuple(problems), tuple(warnings))


def find_metadata(root: Path) -> list[tuple[Path, Split | None, str]]:
    """Labelled metadata tables of an HF imagefolder: (table, split, name prefix); none where folders label."""
    places: list[tuple[Path, Split | None, str]] = [(root, None, "")]
    folders = {entry.name: entry for entry in sorted(root.iterdir()) if entry.is_dir()}
    places += [(folders[name], split_of(name), f"{name}/") for name in split_words(folders)]
    tables = []
    for folder, split, prefix in places:
        for name in METADATA_NAMES:
            if not (folder / name).is_file():
                continue
            if _is_labelled(folder / name):
                tables.append((folder / name, split, prefix))
                break
        if tables and folder == root:
            break  # it may list files in the split folders too
    return tables


def _is_labelled(path: Path) -> bool:
    """Whether a metadata table labels images, also one whose rows cannot be read: that is told when it is read.

    Other tools put files of this name beside images too.
    """
    found = _read(path, path.name)
    return "label" in found.names or bool(found.problems and not found.names and b"label" in path.read_bytes()[:4096])


def join_listings(listings: list[Listing], shown: str) -> Listing:
    """Several tables as one."""
    images = sorted((image for one in listings for image in one.images), key=lambda image: image.name)
    problems = tuple(problem for one in listings for problem in one.problems)
    return Listing(shown, tuple(images), problems, tuple(warning for one in listings for warning in one.warnings))


# ---------------------------------------------------------------------------------------------------- rows


def _image(where: str, values: Mapping[str, Any], base: Path, split: Split | None, prefix: str) -> FoundImage | Problem:
    file_name, label = _text(values.get("file_name")), _text(values.get("label"))
    if not file_name or not label:
        return Problem(where, f"{'file_name' if not file_name else 'label'} is empty")
    if not is_text(file_name + label) or "\0" in file_name + label:
        return Problem(where, f"{file_name!r}, {label!r} is not valid text")
    if "split" in values:
        word = _text(values["split"])
        split = split_of(word)
        if split is None:
            hint = did_you_mean(word.lower(), list(SPLIT_WORDS), "write train, val, test or test_WORD")
            return Problem(where, f"split is {word!r} ({hint})")
    mask = _text(values.get("mask"))
    for name in (file_name, mask):
        if name and not (base / name).is_file():
            hint = "; write / in file names, not \\" if "\\" in name else ""
            return Problem(where, f"{name}{hint} does not exist")
    return FoundImage(
        name=f"{prefix}{Path(file_name).as_posix()}",
        class_name=label,
        split=split,
        content=base / file_name,
        group=_text(values.get("group")) or None,
        caption=_text(values.get("caption")) or None,
        mask=base / mask if mask else None,
    )


def _text(value: Any) -> str:
    """A cell as text; empty for null and NaN, 3 for 3.0."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _where(path: Path, shown: str, prefix: str) -> str:
    """The table as a whole: DATA itself, or the table in the folder that DATA names."""
    return shown if Path(shown).suffix.lower() in TABLE_EXTENSIONS else str(Path(shown, prefix, path.name))


def _check_columns(names: list[str], shown: str) -> tuple[list[Problem], list[str]]:
    known = (*REQUIRED, *OPTIONAL)
    problems = []
    for column in REQUIRED:
        if column in names:
            continue
        near = did_you_mean(column, [name for name in names if name not in known])
        aliases = {
            "file_name": ("file", "filename", "path", "image", "image_path"),
            "label": ("class", "category", "name"),
        }
        alias = next((name for name in names if name.lower().strip() in aliases[column]), None)
        columns = ", ".join(names) or "none"
        hint = f"rename the column {alias!r}" if alias and not near else near.replace("did you mean", "is it called")
        problems.append(Problem(shown, f"has no column {column} (it has {columns})", hint))
    unused = [name for name in names if name not in known]
    near_misses = [(name, did_you_mean(name, [one for one in OPTIONAL if one not in names])) for name in unused]
    return problems, [f"column {name!r} is not used; {hint}" for name, hint in near_misses if hint]


# ---------------------------------------------------------------------------------------------------- files


def _read(path: Path, name: str) -> _Columns:
    """Rows and columns of a table; `name` and a line say where a row is."""
    readers = {".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
    try:
        return readers.get(path.suffix.lower(), _read_csv)(path, name)
    except UnicodeDecodeError as exc:
        return _Columns([], [], [Problem(str(path), f"is not UTF-8 text ({exc.reason})", "save it as UTF-8")])
    except OSError as exc:
        return _Columns([], [], [Problem(str(path), f"cannot be read: {exc.strerror or exc}", "check the file")])


def _read_csv(path: Path, name: str) -> _Columns:
    text = path.read_text(encoding="utf-8-sig")
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    problems: list[Problem] = []
    names: list[str] = []
    try:
        names = [column.strip() for column in next(reader, [])]
        for cells in reader:
            if len(cells) == len(names):
                rows.append((f"{name} line {reader.line_num}", dict(zip(names, cells, strict=True))))
            elif any(cell.strip() for cell in cells):
                text = f"has {len(cells)} fields, the header has {len(names)}"
                problems.append(Problem(f"{name} line {reader.line_num}", text))
    except csv.Error as exc:
        problems.append(Problem(f"{name} line {reader.line_num}", f"is not valid CSV: {exc}"))
    return _Columns(rows, names, shortened(problems, "such lines", "put texts that contain commas in double quotes"))


def _read_jsonl(path: Path, name: str) -> _Columns:
    rows: list[Row] = []
    problems: list[Problem] = []
    for number, line in _lines(path):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as exc:
            problems.append(Problem(f"{name} line {number}", f"is not valid JSON: {exc.msg}"))
            continue
        if isinstance(values, dict):
            rows.append((f"{name} line {number}", values))
        else:
            problems.append(Problem(f"{name} line {number}", f"is no JSON object but {type(values).__name__}"))
    names = list(dict.fromkeys(column for _, values in rows for column in values))
    remedy = 'one object a line: {"file_name": "a.jpg", "label": "cat"}'
    return _Columns(rows, names, shortened(problems, "such lines", remedy))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            yield number, line


def _read_parquet(path: Path, name: str) -> _Columns:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        if "image" in schema.names and "file_name" not in schema.names:
            remedy = f"give its folder as an HF dataset: hf:{path.parent}"
            return _Columns([], [], [Problem(str(path), "holds the images themselves, not file names", remedy)])
        known = [column for column in schema.names if column in (*REQUIRED, *OPTIONAL)]
        rows = pq.read_table(path, columns=known).to_pylist()
    except pa.ArrowInvalid as exc:
        return _Columns([], [], [Problem(str(path), f"is not a Parquet file: {exc}", "check the file")])
    return _Columns([(f"{name} row {index}", row) for index, row in enumerate(rows, start=1)], list(schema.names), [])
