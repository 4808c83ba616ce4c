"""Prompts of other tools: DasDiff's environment files (one phrase a line) and DIAGen's prompt CSV (one prompt a class)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from variegate.errors import DataError, Problem
from variegate.files import write_atomic
from variegate.importers.csv_files import read_rows, shortened
from variegate.importers.found import Found
from variegate.importers.names import matched
from variegate.phrases import MAX_PHRASE, different, read_lines
from variegate.prompt_lists import DIAGEN
from variegate.templates import slot_problems

_WORDS = (
    "aboard above across against along alongside amid amidst among amongst around at atop before behind below beneath beside "
    "between beyond by down during from inside in near next on off onto outside over past through throughout toward towards "
    "under underneath up upon with within without"
)
PLACES = frozenset(_WORDS.split())
ENOUGH = 0.8  # share of the lines that must begin with such a word


def environments_found(path: Path) -> Found:
    """DasDiff's environment file as the prompts section of a recipe; raises DataError where the lines are no places."""
    found = different(line for _, line in read_lines(path))
    phrases, repeated = list(found.phrases), found.repeated
    odd = [phrase for phrase in phrases if phrase.split()[0].lower() not in PLACES]
    too_long = [phrase for phrase in phrases if len(phrase) > MAX_PHRASE]
    if not phrases or len(odd) > (1 - ENOUGH) * len(phrases) or too_long:
        shown = (too_long or odd or ["nothing"])[0][:60]
        text = f"is a text that is no list of places, one a line; it says {shown!r}"
        raise DataError(Problem(str(path), text, "docs/import.md says what can be imported"))
    section = {"text": "a photo of a {name}, {environment}", "environments": phrases}

    def write(folder: Path) -> None:
        body = yaml.safe_dump({"prompts": section}, sort_keys=False, allow_unicode=True, width=1000)
        write_atomic(
            folder / "prompts.yaml", f"# from {path.name}: paste into a recipe, or run it as one\n{body}".encode()
        )

    notes = found.repeats(path.name)
    if odd:
        notes.append(f"{len(odd):,} lines do not begin like a place, for example {odd[0]!r}")
    facts = {"lines": len(phrases) + repeated, "different": len(phrases), "repeated": repeated}
    after = "variegate run DATA --recipe {out}/prompts.yaml"
    return Found("environments", "DasDiff", (path,), facts, write, after, tuple(notes))


def prompts_found(path: Path, classes: Sequence[str] | None) -> Found:
    """DIAGen's prompt CSV as one JSON line a prompt; raises DataError with every wrong row."""
    problems, lines = [], []
    for line, values in read_rows(path, DIAGEN, ";"):
        problems += [Problem(f"{path} line {line}", reason) for reason in _row_reasons(values)]
        lines.append((values["class_name"], values["prompt"]))
    names = sorted({name for name, _ in lines})
    spelled = {name: name for name in names}
    if classes is not None and not problems:
        spelled, problems = matched(names, classes, str(path))
    if problems:
        raise DataError(shortened(problems, path))
    unique = list(dict.fromkeys((spelled[name], prompt) for name, prompt in lines))

    def write(folder: Path) -> None:
        rows = (json.dumps({"class_name": name, "prompt": text}, ensure_ascii=False) for name, text in unique)
        write_atomic(folder / "prompts.jsonl", "".join(f"{row}\n" for row in rows).encode())

    counts = Counter(name for name, _ in unique).values()
    each = min(counts) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    facts = {"rows": len(lines), "classes": len(names), "prompts_each": each, "repeated": len(lines) - len(unique)}
    after = "variegate run DATA --set prompts.method=file --set prompts.file={out}/prompts.jsonl"
    return Found("prompts", "DIAGen", (path,), facts, write, after)


def _row_reasons(values: dict[str, str]) -> list[str]:
    reasons = []
    if not values["class_name"]:
        reasons.append("class_name is empty")
    if not values["class_idx"].isdigit():
        reasons.append(f"class_idx is {values['class_idx']!r}, should be a whole number")
    unfit = slot_problems(values["prompt"], ("name",))
    if not unfit and "{name}" not in values["prompt"]:
        unfit = [f"prompt {values['prompt']!r} needs the slot {{name}}"]
    return reasons + unfit
