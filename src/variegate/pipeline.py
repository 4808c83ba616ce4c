"""The stages in order, what each depends on, and running them: skip what is done, redo what changed.

A stage is a module with NAME, `inputs(recipe)` (what its result depends on besides the stage before it) and
`run(context)`, which returns a summary dict whose `line` is the one counted line people read; what the stage took
(cost.py) is put beside it as `cost`. It may have
`found(context)`, what its result depends on in the run folder itself (decisions that people make there), and
`intact(context)`, whether what it made besides its artefacts is still there.
"""

from __future__ import annotations

import importlib
import json
import time
from dataclasses import dataclass
from typing import Any, Protocol

from variegate import __version__
from variegate.cost import Meter
from variegate.progress import Reporter
from variegate.recipe import Recipe
from variegate.records import content_id
from variegate.store import RunFolder

STAGES = ("dataset", "adapt", "prompts", "generate", "refine", "curate", "train", "evaluate", "report")


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage is given."""

    recipe: Recipe
    folder: RunFolder
    reporter: Reporter
    workers: int = 1


class Stage(Protocol):
    NAME: str

    def inputs(self, recipe: Recipe) -> dict[str, Any]: ...

    def run(self, context: Context) -> dict[str, Any]: ...


def load_stage(name: str) -> Stage:
    return importlib.import_module(f"variegate.stages.{name}.stage")


def _key(stage: Stage, context: Context, upstream: str) -> str:
    """Changes when the stage's result may: with the version, the stages before it, its inputs and what it finds."""
    given = json.loads(json.dumps(stage.inputs(context.recipe), default=str))
    found = stage.found(context) if hasattr(stage, "found") else None
    return content_id(__version__, stage.NAME, upstream, given, found)


def _intact(stage: Stage, context: Context) -> bool:
    """Whether what a finished stage made is still there: its artefacts, and what it can tell of itself."""
    folder = context.folder
    whole = all(folder.path(path).is_file() for path in folder.artefacts(stage.NAME).values())
    return whole and (not hasattr(stage, "intact") or stage.intact(context))


def run_stages(context: Context, last: str = "report") -> dict[str, dict[str, Any]]:
    """Run every stage up to `last`; stages whose key is unchanged are taken as they are. Returns their summaries."""
    summaries: dict[str, dict[str, Any]] = {}
    upstream = ""
    for name in STAGES[: STAGES.index(last) + 1]:
        stage = load_stage(name)
        upstream = _key(stage, context, upstream)
        done = context.folder.stage(name)
        if done and done[0] == upstream and _intact(stage, context):
            summaries[name] = done[1]
            context.reporter.skipped(f"{name}: already done — {done[1]['line']}")
            continue
        start = time.monotonic()
        context.reporter.event("stage-start", stage=name)
        with Meter() as meter:
            summary = stage.run(context)
        seconds = time.monotonic() - start
        summary = {**summary, "cost": meter.cost()}
        context.folder.finish_stage(name, upstream, seconds, summary)
        context.reporter.event("stage-done", stage=name, seconds=round(seconds, 3))
        context.reporter.line(f"{name}: {summary['line']}")
        summaries[name] = summary
    return summaries
