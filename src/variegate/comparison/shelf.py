"""Adapters that runs share: learned once for a draw, taken as a file by every recipe that would learn the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from variegate.api import run
from variegate.backends.adapter import ADAPTER, FACTS
from variegate.cost import largest
from variegate.progress import QuietReporter
from variegate.recipe import Recipe, overlaid
from variegate.records import content_id
from variegate.stages.adapt.material import lesson_drawing, lesson_fingerprints
from variegate.store import RunFolder

NOT_LEARNED = {"model", "previews", "evaluations", "checkpoints"}  # keys that leave the learned weights as they are


class Shelf:
    """A folder of runs that stopped after adapting, one for each lesson."""

    def __init__(self, root: Path, reporter_class: type[QuietReporter] = QuietReporter) -> None:
        self.root, self.reporter_class = root, reporter_class

    def taught(self, recipe: Recipe) -> Recipe:
        """The recipe with its adapter taken from the shelf, learned now where it is not there yet."""
        folder = self.folder(recipe)
        if folder is None:
            return recipe
        if not (folder / ADAPTER / FACTS).is_file():  # written last; another backend would make it the same anew
            run(None, recipe, folder, last="adapt", reporter_class=self.reporter_class)
        taken: dict[str, Any] = {"method": "file", "path": str(folder / ADAPTER)}
        if recipe.adapt.distill.pairs:
            taken |= {"model": None, "distill": {"pairs": 0}}  # what was distilled fits the model that draws
        return Recipe.model_validate(overlaid(recipe.model_dump(), {"adapt": taken}))

    def folder(self, recipe: Recipe) -> Path | None:
        """Where the adapter is or would be; None where the recipe learns none."""
        if recipe.adapt.method in {"none", "file"}:
            return None
        not_learned = NOT_LEARNED - ({"evaluations"} if recipe.adapt.early_stop else set())
        lesson = content_id(
            recipe.seed,
            recipe.dataset.model_dump(exclude_defaults=True),
            recipe.adapt.model_dump(exclude=not_learned, exclude_defaults=True),
            lesson_fingerprints(recipe),
            lesson_drawing(recipe),
            (recipe.prompts.text, recipe.prompts.environments),
        )
        return self.root / lesson

    def cost(self, recipe: Recipe) -> dict[str, Any] | None:
        """What the lesson took; None where the recipe learns none, or has not yet."""
        folder = self.folder(recipe)
        if folder is None or not (folder / "run.db").is_file():
            return None
        with RunFolder.read(folder) as opened:
            done = opened.stage("adapt")
        return spent(done) if done else None


def spent(done: tuple[str, Mapping[str, Any], float]) -> dict[str, Any]:
    """Seconds, energy and largest process (on the host or on a GPU) of a finished stage; None where it does not tell.

    Energy is not told of a stage that kept parts of an earlier result: it would be that of the rest.
    """
    _, said, seconds = done
    cost = said.get("cost") or {}
    told = [cost.get(key) for key in ("peak_memory_mb", "worker_memory_mb", "gpu_memory_mb")]
    return {
        "seconds": seconds,
        "energy_j": None if said.get("went_on") else cost.get("energy_j"),
        "memory_mb": largest(told),
    }
