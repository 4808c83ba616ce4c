"""Lists of prompts, for every class or for each: DIAGen's CSV, JSON lines, or a text with one prompt a line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from variegate.errors import DataError, Problem
from variegate.importers.csv_files import header, read_rows, shortened
from variegate.importers.names import spellings
from variegate.phrases import read_lines
from variegate.templates import slot_problems

DIAGEN = ("class_name", "class_idx", "prompt")
COLUMNS = ("class_name", "prompt")


@dataclass(frozen=True, slots=True)
class ListedPrompt:
    """One prompt with slots such as {name}; `class_name` is None where it is for every class."""

    class_name: str | None
    prompt: str
    where: str  # file and line


@dataclass(frozen=True, slots=True)
class ClassTexts:
    """Different texts of each class in the file's order, by label; what was left out and why."""

    texts: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def read_prompts(path: Path) -> list[ListedPrompt]:
    """Every prompt of a file, its kind told by the suffix (.csv, .jsonl, else text); raises DataError with every wrong line."""
    if not path.is_file():
        raise DataError(Problem(str(path), "does not exist", "prompts.file names a .csv, .jsonl or text file"))
    readers = {".csv": _from_csv, ".jsonl": _from_jsonl}
    found, problems = readers.get(path.suffix.lower(), _from_text)(path)
    problems += [Problem(one.where, reason) for one in found for reason in slot_problems(one.prompt)]
    if problems:
        raise DataError(shortened(problems, path))
    if not found:
        raise DataError(Problem(str(path), "has no prompts", "write one a line"))
    return found


def texts_by_class(found: Sequence[ListedPrompt], classes: Sequence[str], path: Path) -> ClassTexts:
    """Deal prompts to the data's classes; names are equal up to underscores, slashes and spaces.

    Raises DataError naming every class that has none (DIAGen drops it and fails with a KeyError while drawing) and
    every name that fits several.
    """
    names = sorted({one.class_name for one in found if one.class_name is not None})
    meant = spellings(names, classes)
    problems = [
        Problem(str(path), f"{name!r} may be any of {', '.join(map(repr, same))}", "write one of them")
        for name, same in meant.items()
        if len(same) > 1
    ]
    own = {name: same[0] for name, same in meant.items() if len(same) == 1}
    texts = [_texts_of(name, found, own) for name in classes]
    empty = [name for name, given in zip(classes, texts, strict=True) if not given]
    unknown = [name for name, same in meant.items() if not same]
    if empty and not problems:
        hint = (
            f"it has prompts for {', '.join(map(repr, unknown[:5]))}, which the data do not have; " if unknown else ""
        )
        text = f"has no prompt for {len(empty):,} of {len(classes):,} classes: {', '.join(map(repr, empty[:10]))}"
        problems.append(Problem(str(path), text, f"{hint}add some, or lines without a class"))
    if problems:
        raise DataError(problems)
    return ClassTexts(tuple(texts), tuple(_notes(found, unknown, path)))


def _texts_of(name: str, found: Sequence[ListedPrompt], own: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(
        dict.fromkeys(one.prompt for one in found if one.class_name is None or own.get(one.class_name) == name)
    )


def _notes(found: Sequence[ListedPrompt], unknown: Sequence[str], path: Path) -> list[str]:
    notes = []
    repeated = len(found) - len({(one.class_name, one.prompt) for one in found})
    if repeated:
        notes.append(f"{path}: {repeated:,} of {len(found):,} prompts repeat another one and count once")
    if unknown:
        shown = ", ".join(map(repr, unknown[:5]))
        notes.append(f"{path}: prompts of {len(unknown):,} classes that the data do not have are left out: {shown}")
    return notes


# ------------------------------------------------------------------------------------------ formats


Read = tuple[list[ListedPrompt], list[Problem]]


def _from_csv(path: Path) -> Read:
    delimiter, columns = header(path)
    rows = read_rows(path, DIAGEN if "class_idx" in columns else COLUMNS, delimiter)
    problems = [Problem(f"{path} line {line}", "class_name is empty") for line, row in rows if not row["class_name"]]
    problems += [Problem(f"{path} line {line}", "prompt is empty") for line, row in rows if not row["prompt"]]
    return [ListedPrompt(row["class_name"], row["prompt"], f"{path} line {line}") for line, row in rows], problems


def _from_jsonl(path: Path) -> Read:
    found, problems = [], []
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
        except ValueError as exc:
            problems.append(Problem(where, f"is no JSON: {exc}", 'write {"class_name": ..., "prompt": ...}'))
            continue
        reason = _row_reason(row)
        if reason:
            problems.append(Problem(where, reason, 'write {"class_name": ..., "prompt": ...}'))
        else:
            found.append(ListedPrompt(row.get("class_name"), " ".join(row["prompt"].split()), where))
    return found, problems


def _row_reason(row: object) -> str:
    if not isinstance(row, dict):
        return "is no JSON object"
    unknown = sorted(set(row) - set(COLUMNS))
    if unknown:
        return f"has the unknown key {unknown[0]!r}"
    if not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
        return "has no prompt"
    if not isinstance(row.get("class_name"), str | None) or row.get("class_name") == "":
        return f"class_name is {row['class_name']!r}, should be a name, or left out for every class"
    return ""


def _from_text(path: Path) -> Read:
    lines = [" ".join(line.split()) for _, line in read_lines(path)]
    return [ListedPrompt(None, line, str(path)) for line in lines if line], []
