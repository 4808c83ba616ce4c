"""Parts of different systems in one recipe: every strategy with every operation and score, and operations with each other.

Each strategy draws its two images once, from a tiny model; the operations then work on the same drawn images.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapting import BACKEND, NAMES, learn, make_run
from adapting import recipe_of as learning
from pydantic import ValidationError
from tiny_models import tiny_edit, tiny_sd, transformers_clip_folder  # noqa: F401 - fixtures

from variegate.images import load_rgb
from variegate.pipeline import Context
from variegate.progress import QuietReporter
from variegate.recipe import Recipe
from variegate.stages.adapt import stage as adapt
from variegate.stages.curate import stage as curate
from variegate.stages.generate import stage as generate
from variegate.stages.prompts import stage as prompts
from variegate.stages.refine import stage as refine
from variegate.store import RunFolder, drawn_path

STRATEGIES = [f"{kind}-{use}" for kind in ("real", "ti", "diff") for use in ("gen", "aug", "mix")] + ["edit"]
OPERATIONS = ("concat", "fractal", "patches", "hybrid-blend")
SCORES = ("blank", "class-agreement", "text-agreement")
FRACTAL = "fractal"  # the one operation that needs no original
SIZE_PX = 32


def is_refused(strategy: str, operations: tuple[str, ...]) -> bool:
    return strategy.endswith("-gen") and any(name != FRACTAL for name in operations)


class Studio:
    """Run folders by strategy, each with two drawn images."""

    def __init__(self, root: Path, models: dict[str, Path]) -> None:
        self.root, self.models, self.folders, self.opened = root, models, {}, ExitStack()
        folder = self.opened.enter_context(make_run(root / "lesson", NAMES[:2]))
        learn(folder, learning(models["sd"], steps=1))
        self.adapter = folder.root / "adapt"

    def recipe(self, strategy: str, operations: tuple[str, ...] = (FRACTAL,), score: str = "blank") -> Recipe:
        """A whole recipe; raises ValidationError where its parts do not go together."""
        clip = f"clip:{self.models['clip']}"
        step: dict[str, Any] = {"score": score} | ({"encoder": clip} if score == "text-agreement" else {})
        learned = {"method": "file", "path": str(self.adapter)} if strategy[:2] in {"ti", "di"} else {}
        return Recipe.model_validate(
            {
                "backend": {**BACKEND, "model": str(self.models["edit" if strategy == "edit" else "sd"])},
                "adapt": learned,
                "generate": {"method": strategy, "per_class": 1, "strength": 0.5},
                "refine": [{"op": name} | ({"encoder": clip} if name == "hybrid-blend" else {}) for name in operations],
                "curate": [step],
                "train": {"mixing": {"policy": "pool"}},
            }
        )

    def drawn(self, strategy: str) -> RunFolder:
        if strategy not in self.folders:
            folder = self.opened.enter_context(make_run(self.root / strategy, NAMES[:2]))
            context = Context(self.recipe(strategy), folder, QuietReporter())
            for stage in (adapt, prompts, generate):
                folder.finish_stage(stage.NAME, "", 0.0, stage.run(context))
            self.folders[strategy] = folder
        return self.folders[strategy]

    def refined(self, strategy: str, operations: tuple[str, ...], score: str = "blank") -> tuple[RunFolder, Recipe]:
        folder, recipe = self.drawn(strategy), self.recipe(strategy, operations, score)
        refine.check(recipe)
        curate.check(recipe)
        assert refine.run(Context(recipe, folder, QuietReporter()))["refined"] == 2
        return folder, recipe


@pytest.fixture(scope="module")
def studio(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sd: Path,  # noqa: F811
    tiny_edit: Path,  # noqa: F811
    transformers_clip_folder: Path,  # noqa: F811
) -> Iterator[Studio]:
    models = {"sd": tiny_sd, "edit": tiny_edit, "clip": transformers_clip_folder}
    studio = Studio(tmp_path_factory.mktemp("compose"), models)
    with studio.opened:
        yield studio


def check_images(folder: RunFolder, strategy: str, operations: tuple[str, ...]) -> None:
    """Two images of the right size, class and source, refined, with labels that say how much of each class is shown."""
    images, classes = folder.synthetic_images(kept_only=False), folder.classes()
    labels = {image.id: image.label for image in folder.real_images("train")}
    lines = folder.path("synthetic/train/metadata.jsonl").read_text().splitlines()
    told = {line["id"]: line for line in map(json.loads, lines)}
    assert sorted(image.target for image in images) == [0, 1]
    for image in images:
        source = None if image.source is None else labels[image.source]
        same = {"gen": None, "mix": 1 - image.target}.get(strategy.partition("-")[2], image.target)
        assert source == same
        pixels = load_rgb(folder.path(image.path))
        before = load_rgb(folder.path(drawn_path(classes[image.target], image.id)))
        assert pixels.shape == before.shape == (SIZE_PX, SIZE_PX, 3)
        assert np.abs(pixels.astype(float) - before).mean() > 2.0, "more than what JPEG leaves"
        assert (image.original_share > 0) == any(name != FRACTAL for name in operations)
        weights = {part["label"]: part["weight"] for part in told[image.id]["soft_label"]}
        assert sum(weights.values()) == pytest.approx(1.0)
        assert set(weights) == ({0, 1} if strategy.endswith("-mix") else {image.target})


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ValidationError) as refused:
        call()
    return str(refused.value)


@pytest.mark.parametrize(("strategy", "operation"), list(itertools.product(STRATEGIES, OPERATIONS)))
def test_every_strategy_with_every_operation(studio: Studio, strategy: str, operation: str) -> None:
    if is_refused(strategy, (operation,)):
        said = refusal(lambda: studio.recipe(strategy, (operation,)))
        assert f"{operation} mixes each drawn image with its original" in said
        assert strategy.replace("-gen", "-aug") in said, "what to use instead"
    else:
        folder, _ = studio.refined(strategy, (operation,))
        check_images(folder, strategy, (operation,))


@pytest.mark.parametrize(("strategy", "score"), list(itertools.product(STRATEGIES, SCORES)))
def test_every_strategy_with_every_score(studio: Studio, strategy: str, score: str) -> None:
    folder, recipe = studio.refined(strategy, (FRACTAL,), score)
    summary = curate.run(Context(recipe, folder, QuietReporter()))
    check_images(folder, strategy, (FRACTAL,))
    scored = folder.db.execute("SELECT DISTINCT id FROM scores WHERE score LIKE ?", (f"{score}%",)).fetchall()
    assert len(scored) == 2 or summary["warnings"], "scored, or said why not"
    decided = folder.db.execute("SELECT COUNT(DISTINCT id) FROM decisions WHERE made_by = 'curate'").fetchone()
    assert decided == (2,)


@pytest.mark.parametrize("operations", list(itertools.product(OPERATIONS, OPERATIONS)), ids="+".join)
@pytest.mark.parametrize("strategy", ["diff-mix", "real-gen"])
def test_every_operation_after_every_other(studio: Studio, strategy: str, operations: tuple[str, ...]) -> None:
    if is_refused(strategy, operations):
        assert "draws from text alone" in refusal(lambda: studio.recipe(strategy, operations))
    else:
        folder, _ = studio.refined(strategy, operations)
        check_images(folder, strategy, operations)


def test_refining_or_training_with_nothing_drawn_is_refused(studio: Studio) -> None:
    assert "generate.method is none; set refine: []" in refusal(lambda: studio.recipe("none"))
    assert "generate.method is none; set arms: [real]" in refusal(lambda: studio.recipe("none", ()))
