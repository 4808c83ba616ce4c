"""Adapters that runs share: learned once for a draw, taken as a file by every recipe that would learn the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from variegate.api import run
from variegate.backends.adapter import ADAPTER, FACTS
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
        lesson = content_id(
            recipe.seed,
            recipe.dataset.model_dump(),
            recipe.adapt.model_dump(exclude=NOT_LEARNED - ({"evaluations"} if recipe.adapt.early_stop else set())),
            lesson_fingerprints(recipe),
            lesson_drawing(recipe),
            (recipe.prompts.text, recipe.prompts.environments),
        )
        return self.root / lesson

    def cost(self, recipe: Recipe) -> dict[str, Any] | None:
        """Seconds and peak memory of the lesson; None where the recipe learns none, or has not yet."""
        folder = self.folder(recipe)
        if folder is None or not (folder / "run.db").is_file():
            return None
        with RunFolder.read(folder) as opened:
            done = opened.stage("adapt")
        return {"seconds": done[2], "peak_memory_mb": peak_memory([done[1]])} if done else None


def peak_memory(summaries: Iterable[Mapping[str, Any]]) -> float | None:
    """The most that any of these stages took, on the host or on a GPU, in MB; None where none of them tells."""
    keys = ("peak_memory_mb", "worker_memory_mb", "gpu_memory_mb")
    told = [said["cost"].get(key) for said in summaries if said.get("cost") for key in keys]
    return max((value for value in told if value is not None), default=None)
