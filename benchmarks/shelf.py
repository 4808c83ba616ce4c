"""Adapters that the runs of a benchmark share: learned once for a draw, taken as a file by every recipe that would learn the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from variegate.api import run, settle
from variegate.backends.adapter import ADAPTER, FACTS
from variegate.records import content_id
from variegate.stages.adapt.material import training_fingerprint

NOT_LEARNED = {"model", "previews", "evaluations", "checkpoints"}  # keys that leave the learned weights as they are


class Shelf:
    """A folder of runs that stopped after adapting, one for each lesson."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def keys(self, data: str, recipe: str, overrides: Sequence[str]) -> list[str]:
        """Overrides that make this run take its adapter from the shelf, learned now where it is not there yet."""
        settled = settle(data, recipe, overrides)
        if settled.adapt.method in {"none", "file"}:
            return []
        lesson = content_id(
            settled.seed,
            settled.dataset.model_dump(),
            settled.adapt.model_dump(exclude=NOT_LEARNED),
            training_fingerprint(settled),
            (settled.prompts.text, settled.prompts.environments),
        )
        folder = self.root / lesson
        if not (folder / ADAPTER / FACTS).is_file():  # written last; another backend would make it the same anew
            run(data, recipe, folder, overrides=overrides, last="adapt")
        return ["adapt.method=file", f"adapt.path={folder / ADAPTER}"]
