"""Class names: from a file of the user's, and matched with names that other tools have mangled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from unicodedata import normalize

from variegate.errors import DataError, Problem

MAX_BYTES = 16 * 2**20


def plain(name: str) -> str:
    """A name as the other systems make it equal: underscores and slashes become spaces.

    >>> plain("black_footed  albatross"), plain("F/A-18")
    ('black footed albatross', 'F A-18')
    """
    return re.sub(r"[\s_/]+", " ", normalize("NFC", name)).strip()


def read_class_names(paths: Sequence[Path]) -> tuple[str, ...] | None:
    """One name a line, files one after the other; None where no file is given. Raises DataError."""
    if not paths:
        return None
    problems, names = [], []
    for path in paths:
        try:
            if path.stat().st_size > MAX_BYTES:
                problems.append(Problem(str(path), f"is larger than {MAX_BYTES:,} bytes", "is this a list of names?"))
                continue
            names += [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except OSError as exc:
            problems.append(Problem(str(path), f"cannot be read: {exc.strerror}", "give a file, one class name a line"))
        except UnicodeDecodeError:
            problems.append(Problem(str(path), "is no UTF-8 text", "give a file, one class name a line"))
    twice = sorted({name for name in names if names.count(name) > 1}) if not problems else []
    problems += [Problem("--classes", f"has {name!r} twice", "give each class its own name") for name in twice]
    if not problems and not names:
        problems.append(Problem("--classes", "has no names", "one class name a line"))
    if problems:
        raise DataError(problems)
    return tuple(names)


def spellings(found: Sequence[str], given: Sequence[str]) -> dict[str, list[str]]:
    """Names in a file -> the names given that they may mean: the very one, or those equal but for `plain`.

    >>> spellings(["cell phone", "car"], ["cell_phone", "carrot"])
    {'cell phone': ['cell_phone'], 'car': []}
    """
    by_plain: dict[str, list[str]] = {}
    for name in given:
        by_plain.setdefault(plain(name), []).append(name)
    exact = set(given)
    return {name: [name] if name in exact else by_plain.get(plain(name), []) for name in found}


def matched(found: Sequence[str], given: Sequence[str], where: str) -> tuple[dict[str, str], list[Problem]]:
    """Names in a file -> the user's spelling of them, equal up to underscores, slashes and spaces."""
    known, problems = {}, []
    for name, same in spellings(found, given).items():
        if len(same) == 1:
            known[name] = same[0]
        elif same:
            text = f"{name!r} may be any of {', '.join(map(repr, same))}"
            problems.append(Problem(where, text, "rename one of them"))
        else:
            problems.append(Problem(where, f"has the class {name!r}, and --classes does not", "add it, or correct it"))
    return known, problems
