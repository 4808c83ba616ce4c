"""The stages in order, what each depends on, and running them: skip what is done, redo what changed.

A stage is a module with NAME, `inputs(recipe)` (what its result depends on besides the stage before it) and
`run(context)`, which returns a summary dict whose `line` is the one counted line people read; what the stage took
(cost.py) is put beside it as `cost`. It may have
`found(context)`, what its result depends on in the run folder itself (decisions that people make there), and
`intact(context)`, whether what it made besides its artefacts is still there.

Seconds and cost of a stage are those of all sessions that it took. `went_on` in its summary says that an earlier result was
there, of which the stage may have kept parts: seconds and cost are of what was done anew.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any, Protocol

from variegate import __version__
from variegate.cost import UNKNOWN, Cost, Meter, together
from variegate.errors import VariegateError
from variegate.progress import Reporter
from variegate.recipe import Recipe
from variegate.records import content_id
from variegate.store import RunFolder

UNFINISHED = "unfinished:"  # meta key of a stage that was begun: what its sessions have taken
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
        context.reporter.event("stage-start", stage=name)
        summary, seconds = _work(stage, context, upstream)
        summary |= {"went_on": True} if done else {}
        context.folder.finish_stage(name, upstream, seconds, summary)
        _forget(context.folder, name)
        context.reporter.event("stage-done", stage=name, seconds=round(seconds, 3))
        context.reporter.line(f"{name}: {summary['line']}")
        summaries[name] = summary
    return summaries


# ------------------------------------------------------------------------------------------------ what a stage takes


def _work(stage: Stage, context: Context, key: str) -> tuple[dict[str, Any], float]:
    """Run a stage; returns its summary with its cost, and its seconds, those of earlier sessions that were stopped included."""
    earlier, cost = _earlier(context.folder, stage.NAME, key)
    _note(context.folder, stage.NAME, key, earlier, cost, began=time.time())
    start = time.monotonic()
    meter = Meter()
    try:
        with meter:
            summary = stage.run(context)
    except BaseException:
        with contextlib.suppress(VariegateError, sqlite3.Error):  # a full disk: what stopped the stage is to be said
            seconds = earlier + time.monotonic() - start
            _note(context.folder, stage.NAME, key, seconds, together(cost, meter.cost()))
        raise
    return {**summary, "cost": together(cost, meter.cost())}, earlier + time.monotonic() - start


def _earlier(folder: RunFolder, name: str, key: str) -> tuple[float, Cost | None]:
    """Seconds and cost of the sessions that began this stage and did not end it; (0, None) where there were none."""
    said = json.loads(folder.meta(UNFINISHED + name) or "{}")
    if said.get("key") != key:
        return 0.0, None
    if said["began"] is None:
        return said["seconds"], said["cost"]
    files = [path.stat().st_mtime for path in (folder.root / name).rglob("*") if path.is_file()]
    lived = max([said["began"], *files]) - said["began"]  # it was killed: up to its last file, such as a checkpoint
    return said["seconds"] + lived, together(said["cost"], UNKNOWN)


def _note(
    folder: RunFolder, name: str, key: str, seconds: float, cost: Cost | None, *, began: float | None = None
) -> None:
    """Write down what a stage has taken so far; `began` is the clock's time where a session begins."""
    folder.set_meta(UNFINISHED + name, json.dumps({"key": key, "seconds": seconds, "cost": cost, "began": began}))


def _forget(folder: RunFolder, name: str) -> None:
    with folder.transaction() as db:
        db.execute("DELETE FROM meta WHERE key = ?", (UNFINISHED + name,))
