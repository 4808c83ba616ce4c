"""What docs/methods.md says is where is there: keys, files, commands, recipes and tests."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from variegate.cli import app
from variegate.recipe import (
    ArmSection,
    ConcatStep,
    CurateStep,
    FractalStep,
    HybridBlendStep,
    PatchesStep,
    Recipe,
    Section,
)

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "variegate"
PAGE = (ROOT / "docs" / "methods.md").read_text()
FEATURES, FAULTS = "Every feature of the six code bases", "Faults of the originals and the tests that show ours right"
SYSTEMS = {"DA-Fusion", "Diff-Mix", "DIAGen", "DasDiff", "DiffuseMix", "gdl_term"}


def rows(heading: str) -> Iterator[tuple[str, str]]:
    """(what, where) of the two-column table under a heading, its own headings left out."""
    part = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
    for line in lines:
        what, where = (cell.strip() for cell in line.strip("|").split(" | ", 1))
        if not what.startswith("**"):
            yield what, where.strip("| ")


def key_problem(dotted: str, value: Any) -> str:
    """Why a recipe cannot say this; empty where it can."""
    section: type[Section] = Recipe
    *outer, last = dotted.split(".")
    for name in outer:
        field = section.model_fields.get(name)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, Section):
            return f"no section {name}"
        section = field.annotation
    if last not in section.model_fields:
        return f"no key {last}"
    try:
        if value is not None:
            TypeAdapter(section.model_fields[last].annotation).validate_python(value)
    except ValidationError as exc:
        return str(exc)
    return ""


def feature_problems(what: str, where: str) -> Iterator[str]:
    told = re.findall(r"`([^`]+)`", where)
    if not told and "not here" not in where and not where.startswith("none;"):
        yield f"{what}: says neither where nor why not"
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    for token in told:
        given = re.fullmatch(r"([a-z_]+(?:\.[a-z_]+)*)(?:: (.+))?", token)
        if re.fullmatch(r"[\w./-]+\.(py|txt)", token):
            if not (PACKAGE / token).is_file() and not (ROOT / token).is_file():
                yield f"{what}: no file {token}"
        elif token.startswith("variegate "):
            if token.split()[1] not in commands:
                yield f"{what}: no command {token}"
        elif given and given[1].split(".")[0] in Recipe.model_fields:
            problem = key_problem(given[1], None if given[2] is None else yaml.safe_load(given[2]))
            if problem:
                yield f"{what}: {token}: {problem}"


def test_every_feature_has_a_home_or_a_reason() -> None:
    assert [problem for row in rows(FEATURES) for problem in feature_problems(*row)] == []


def test_no_page_names_a_key_that_is_not_there() -> None:
    """All but the log, which tells of what was."""
    files = {"md", "csv", "jsonl", "json", "yaml", "py", "txt"}
    wrong = []
    for page in [ROOT / "README.md", *sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / "log.md"})]:
        for dotted in re.findall(r"`([a-z]+(?:\.[a-z_]+)+)[:`]", page.read_text()):
            first, last = dotted.split(".")[0], dotted.rsplit(".", 1)[1]
            if first in Recipe.model_fields and last not in files and key_problem(dotted, None):
                wrong.append(f"{page.name}: {dotted}")
    assert wrong == []


def test_recipes_named_on_the_page_are_shipped() -> None:
    shipped = {path.stem for path in (PACKAGE / "recipes").glob("*.yaml")}
    named = set(re.findall(r"recipe `([a-z-]+)`", PAGE))
    assert named and named <= shipped


def test_every_fault_of_the_originals_has_a_test() -> None:
    texts = (path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    functions = {name for text in texts for name in re.findall(r"def (test_\w+)\(", text)}
    missing = []
    for fault, where in rows(FAULTS):
        named = re.findall(r"`(\w+)`", where)
        missing += [f"{fault}: no test {name}" for name in named if not {name, f"test_{name}"} & functions]
        missing += [] if named else [f"{fault}: no test named"]
    assert missing == []


def test_the_tables_are_of_all_systems() -> None:
    part = PAGE.split(f"\n## {FAULTS}\n", 1)[1]
    assert set(re.findall(r"^\| \*\*([\w-]+)\*\* \|", part, re.M)) == SYSTEMS
    assert len(list(rows(FEATURES))) >= 86


def keys_of(section: type[Section], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, default or "required") of a section and those inside it."""
    for name, field in section.model_fields.items():
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, Section):
            yield from keys_of(type(default), f"{prefix}{name}.")
        elif name != "op":
            yield prefix + name, default


def test_the_page_of_keys_has_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    cells = re.findall(r"^\| `([a-z_.]+)` \| (.+?) \|", page, re.MULTILINE)
    told = [(key, json.dumps(yaml.safe_load(default.strip("`")))) for key, default in cells]
    tops = {name: type(field.default) for name, field in Recipe.model_fields.items()}
    found = [
        ("seed", 0),
        *(key for name, top in tops.items() if issubclass(top, Section) for key in keys_of(top, f"{name}.")),
    ]
    for section in (ConcatStep, FractalStep, PatchesStep, HybridBlendStep, CurateStep, ArmSection):
        found += keys_of(section)
    assert sorted(told) == sorted((key, json.dumps(default)) for key, default in found)
