"""docs/migrate.md as it is written: every command and key on the page gives a recipe that holds, on data and models of the tests."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from llm_server import ChatServer
from tiny_models import tiny_edit  # noqa: F401 - fixture

from variegate.api import check, settle
from variegate.backends.folder import OWN, STARTER
from variegate.cli import app
from variegate.errors import UserError
from variegate.images import encode_image
from variegate.recipe import Recipe

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "migrate.md").read_text()
RECIPES = {
    "DA-Fusion": "da-fusion",
    "Diff-Mix": "diff-mix",
    "DIAGen": "diagen",
    "DasDiff": "dasdiff",
    "DiffuseMix": "diffusemix",
}
STRATEGIES = ("real-gen", "real-guidance", "real-mix", "diff-gen", "diff-aug", "diff-mix", "ti-aug", "ti-mix")
CLASSES = ("cat", "owl")
ELSEWHERE = (
    "train.pools",
    "adapt.path",
    "prompts.llm.local",
    "train.pretrained",
)  # other runs, adapters, chat models and weights that would be fetched: tests of their own
NUMBERS = {"K": "1", "S": "3"}
KEY = re.compile(r"([a-z]+(?:\.[a-z_]+)*): (.+)")


@dataclass(frozen=True)
class Line:
    """One thing the page tells to do."""

    where: str
    recipe: str
    overrides: tuple[str, ...]
    wants_table: bool = False


def leaves(key: str, value: Any) -> Iterator[str]:
    """KEY=VALUE for each leaf of a part of a recipe."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(f"{key}.{name}", inner)
    else:
        yield f"{key}={json.dumps(value)}"


def keys_of_cell(cell: str) -> tuple[str, ...]:
    found = (KEY.fullmatch(token) for token in re.findall(r"`([^`]+)`", cell))
    return tuple(
        leaf
        for match in found
        if match and match[1].split(".")[0] in Recipe.model_fields
        for leaf in leaves(match[1], yaml.safe_load(match[2]))
    )


def of_command(text: str) -> Iterator[Line]:
    """The line of a command, one for every strategy where it says NAME; commands that take no recipe are left out."""
    words = shlex.split(text)
    if words[1] not in {"run", "adapt", "generate", "train", "plan"}:
        assert words[1] in {command.name or command.callback.__name__ for command in app.registered_commands}
        return
    overrides = tuple(words[place + 1] for place, word in enumerate(words) if word == "--set")
    named = words[words.index("--recipe") + 1]
    for recipe in STRATEGIES if named == "NAME" else (named,):
        if recipe.endswith("-gen"):  # from text, as strength 1 is
            yield Line(text, recipe, tuple(one for one in overrides if not one.startswith("generate.strength")))
        else:
            yield Line(text, recipe, overrides)


def lines() -> Iterator[Line]:
    recipe = ""
    for text in PAGE.replace("\\\n", " ").splitlines():
        if text.startswith("## "):
            recipe = next((name for system, name in RECIPES.items() if text[3:].startswith(system)), "")
        if text.startswith("variegate "):
            yield from of_command(text)
        if not recipe or not text.startswith("| ") or text.startswith("| there"):
            continue
        cell = text.strip("| ").split(" | ", 1)[1]
        for command in re.findall(r"`(variegate [^`]+)`", cell):
            yield from of_command(command)
        overrides = keys_of_cell(cell)
        if overrides:
            yield Line(text, recipe, overrides, "column" in cell)


LINES = list(lines())


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory, tiny_edit: Path) -> Iterator[dict[str, str]]:  # noqa: F811
    """What the page's words stand for."""
    root = tmp_path_factory.mktemp("migrate")
    rng = np.random.default_rng(0)
    rows = ["file_name,label,split,group,mask"]
    for split in ("train", "val", "test"):
        for name in CLASSES:
            for index in range(3):
                path = root / "photos" / split / name / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_image(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8), "png"))
                mask = np.zeros((32, 32, 3), np.uint8)
                mask[8:24, 8:24] = 255
                (root / f"{split}-{name}-{index}.png").write_bytes(encode_image(mask, "png"))
                rows.append(f"photos/{split}/{name}/{index}.png,{name},{split},on snow,{split}-{name}-{index}.png")
    (root / "table.csv").write_text("\n".join(rows) + "\n")
    (root / "places.txt").write_text("in snow\non a rock\n")
    (root / "prompts.csv").write_text(
        "class_name;class_idx;prompt\n" + "".join(f"{n};1;a {{name}} in snow\n" for n in CLASSES)
    )
    with ChatServer() as server:
        yield {
            "table": str(root / "table.csv"),
            "folder": str(root / "photos"),
            "timbrooks/instruct-pix2pix": str(tiny_edit),
            "MODEL": "starter",
            "TURBO": "starter-onestep",
            "PARENT": "starter",
            "UNET": str(OWN["starter-onestep"] / "unet"),
            "FILE": str(root / "places.txt"),
            "prompts.csv": str(root / "prompts.csv"),
            "DIR/unet.safetensors": str(STARTER / "unet" / "diffusion_pytorch_model.safetensors"),
            "clip:ViT-B-32/openai": "clip:starter",
            "http://127.0.0.1:8000/v1": server.url,
        }


def put_in(override: str, stand_ins: dict[str, str]) -> str:
    key, value = override.split("=", 1)
    for word, meant in stand_ins.items():
        if word not in {"table", "folder"}:
            value = re.sub(rf"(?<![\w/]){re.escape(word)}(?!\w)", lambda _, meant=meant: meant, value)
    number = NUMBERS.get(value.strip('"'), value)
    return f"{key}={number}"


@pytest.mark.parametrize("line", LINES, ids=[f"{line.recipe}-{number}" for number, line in enumerate(LINES)])
def test_every_command_of_the_page_gives_a_recipe_that_holds(
    line: Line, stand_ins: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a key")
    given = [put_in(one, stand_ins) for one in line.overrides]
    data = stand_ins["table" if line.wants_table else "folder"]
    try:
        recipe = settle(data, line.recipe, ["backend.device=cpu", *given])
        if not any(one.startswith(ELSEWHERE) for one in line.overrides):
            check(recipe)
    except UserError as exc:
        pytest.fail(f"{line.where}\n{exc}")


def test_what_follows_adapting_takes_the_adapter_and_looks_at_the_same_images() -> None:
    """Line after line in one shell: a run that repeats not every key of `adapt` would learn another one, or be refused."""
    blocks = [block.replace("\\\n", " ").splitlines() for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)]
    followed = 0
    for block in blocks:
        commands = [shlex.split(line) for line in block]
        for words in commands:
            assert "--out" in words or words[1] == "run", words
        if not any(words[1] == "adapt" for words in commands):
            continue
        learned, *others = (dict(one.split("=", 1) for one in words if "=" in one) for words in commands)
        where = commands[0][commands[0].index("--out") + 1]
        for words, keys in zip(commands[1:], others, strict=True):
            if words[words.index("--recipe") + 1] != commands[0][commands[0].index("--recipe") + 1]:
                continue  # the next thing that README does, without the adapter
            assert keys["adapt.method"] == "file" and keys["adapt.path"] == f"{where}/adapt"
            same = ("seed", "adapt.model", *(key for key in learned if key.startswith(("dataset.", "backend."))))
            assert {key: keys.get(key) for key in same} == {key: learned.get(key) for key in same}
            followed += 1
    assert followed == 3


def test_the_page_has_something_for_every_system() -> None:
    assert {line.recipe for line in LINES} >= set(RECIPES.values()) | set(STRATEGIES)
    assert len(LINES) > 60
