"""Read CSV files of a known header: every column understood, every row whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from variegate.errors import DataError, Problem

MAX_BYTES = 512 * 2**20
SHOWN = 10
INDEX = ("", "Unnamed: 0", "index")  # pandas writes its row numbers under one of these


def header(path: Path) -> tuple[str, list[str]]:
    """The delimiter (, or ; or tab) and the column names of the first line."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.readline(65_536).rstrip("\r\n")
    delimiter = max(",;\t", key=first.count)
    return delimiter, [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]


def read_rows(path: Path, columns: Sequence[str], delimiter: str) -> list[tuple[int, dict[str, str]]]:
    """(line number, values) of every row; raises DataError with columns not understood, missing, and broken rows."""
    if path.stat().st_size > MAX_BYTES:
        raise DataError(Problem(str(path), f"is larger than {MAX_BYTES:,} bytes", "import it in parts"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(Problem(str(path), f"is no UTF-8 text: {exc}", "save it as UTF-8")) from exc
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, problems = [], []
    try:
        names = [name.strip() for name in next(reader, [])]
        _check_columns(path, names, columns)
        for cells in reader:
            if len(cells) == len(names):
                values = dict(zip(names, map(str.strip, cells), strict=True))
                rows.append((reader.line_num, {name: values[name] for name in columns}))
            elif any(map(str.strip, cells)):
                where = f"{path} line {reader.line_num}"
                problems.append(Problem(where, f"has {len(cells)} fields, the header has {len(names)}"))
    except csv.Error as exc:
        problems.append(Problem(f"{path} line {reader.line_num}", f"is not valid CSV: {exc}", "correct it"))
    if not rows and not problems:
        problems.append(Problem(str(path), "has no rows", "name another file"))
    if problems:
        raise DataError(shortened(problems, path))
    return rows


def _check_columns(path: Path, names: Sequence[str], columns: Sequence[str]) -> None:
    extra = [name for name in names if name not in columns and name not in INDEX]
    missing = [name for name in columns if name not in names]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = []
    if extra:
        remedy = f"known are {', '.join(columns)}; remove the others"
        problems.append(Problem(str(path), f"columns not understood: {', '.join(map(repr, extra))}", remedy))
    if missing:
        problems.append(Problem(str(path), f"lacks the columns {', '.join(map(repr, missing))}", "name another file"))
    if twice:
        problems.append(Problem(str(path), f"has {', '.join(map(repr, twice))} twice", "remove one"))
    if problems:
        raise DataError(problems)


def shortened(problems: Sequence[Problem], path: Path) -> list[Problem]:
    """The first problems and a count of the rest."""
    more = [Problem(str(path), f"and {len(problems) - SHOWN:,} more such rows")] if len(problems) > SHOWN else []
    return [*problems[:SHOWN], *more]
