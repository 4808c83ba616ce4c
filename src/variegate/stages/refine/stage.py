"""Refine stage: the recipe's operations on every drawn image, in the plan's chunks, and the table. Glue only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from variegate.backends.devices import num_workers, worker_devices
from variegate.card import write_card
from variegate.errors import RecipeError
from variegate.executors.local import run_tasks
from variegate.image_text import check_clip, clip_fingerprint, dense_problems
from variegate.metadata import METADATA, write_metadata
from variegate.pipeline import Context
from variegate.recipe import Recipe
from variegate.records import content_id
from variegate.stages.refine.estimate import estimate
from variegate.stages.refine.hybrid import WHERE
from variegate.stages.refine.work import Refined, RefineSetup, RefineTask, RefineWorker, uses_torch
from variegate.store import RunFolder, explained, sweep_temporary, synthetic_path

__all__ = ["NAME", "check", "estimate", "found", "inputs", "intact", "run"]
NAME = "refine"


def inputs(recipe: Recipe) -> dict[str, Any]:
    """The label section is here because metadata.jsonl holds soft labels."""
    if not recipe.refine:
        return {}
    steps = [step.model_dump() for step in recipe.refine]
    return {"refine": steps, "fit": recipe.dataset.fit, "label": recipe.train.label.model_dump()}


def found(context: Context) -> list[list[str]]:
    """The encoders as they are now: a folder's files may change under the same name."""
    return [clip_fingerprint(name) for name in _encoders(context.recipe)]


def check(recipe: Recipe) -> None:
    """Raise RecipeError with every encoder that could not be loaded; loads no model."""
    problems = [problem for name in dict.fromkeys(_encoders(recipe)) for problem in check_clip(name, WHERE)]
    if not problems:
        dense = [step.encoder for step in recipe.refine if step.op == "hybrid-blend" and step.map == "dense"]
        problems = [problem for name in dict.fromkeys(dense) for problem in dense_problems(name, WHERE)]
    if problems:
        raise RecipeError(problems)


def _encoders(recipe: Recipe) -> list[str]:
    return [step.encoder for step in recipe.refine if step.op == "hybrid-blend"]


def run(context: Context) -> dict[str, Any]:
    """Refine every chunk that is not refined and whole; returns the counted line, the number and the mean share."""
    recipe, folder = context.recipe, context.folder
    if not recipe.refine:
        return {"line": "nothing to refine", "refined": 0}
    check(recipe)
    with explained(folder.root):
        sweep_temporary(folder.root / "synthetic")  # a worker may have been killed where this process was not
    forget_changed(context)
    start = time.monotonic()
    refined = refine_pending(context)
    seconds = time.monotonic() - start
    write_metadata(folder, gamma=recipe.train.label.gamma, kappa=recipe.train.label.kappa)
    write_card(folder, recipe)
    return summarise(folder, recipe, refined, seconds)


def intact(context: Context) -> bool:
    """Whether every image recorded as refined is still there, and the table of them."""
    folder = context.folder
    return not context.recipe.refine or (folder.path(METADATA).is_file() and not _lost(folder))


def _lost(folder: RunFolder) -> list[int]:
    return folder.lost_chunks(synthetic_path, folder.meta("image_format") or "jpg", refined=True)


def forget_changed(context: Context) -> None:
    """Take back the record of images that are lost, or that were made from other drawn images, keys or encoders."""
    folder = context.folder
    key = content_id(inputs(context.recipe), found(context), folder.meta("plan_key"))
    is_same = folder.meta("refine_key") == key
    lost = _lost(folder) if is_same else []
    with folder.transaction() as db:
        if not is_same:
            db.execute("DELETE FROM refined")
            made = content_id(
                [step.model_dump() for step in context.recipe.refine], context.recipe.dataset.fit, found(context)
            )
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", [("refine_key", key), ("refined_by", made)])
        query = "DELETE FROM refined WHERE id IN (SELECT id FROM plan WHERE chunk = ?)"
        db.executemany(query, ((chunk,) for chunk in lost))


def refine_pending(context: Context) -> int:
    """Refine what is drawn and not refined; returns the number of images refined now."""
    folder = context.folder
    pending = folder.unrefined_chunks()
    if not pending:
        return 0
    total, done = folder.db.execute("SELECT (SELECT COUNT(*) FROM plan), (SELECT COUNT(*) FROM refined)").fetchone()
    setup = _setup(context)
    workers = num_workers(context.workers, len(pending), setup.devices)
    results = run_tasks(partial(RefineWorker, setup), _tasks(folder, pending), workers, log_dir=folder.root / "logs")
    with explained(folder.root), context.reporter.bar("refining", total, done=done) as bar:
        for _, result in results:
            _record(context, result)
            bar.advance(len(result.shares))
    return total - done


def _setup(context: Context) -> RefineSetup:
    folder, recipe = context.folder, context.recipe
    spec = json.loads(folder.meta("backend") or "{}")  # as planned: the same numbers on any day
    return RefineSetup(
        steps=tuple(recipe.refine),
        root=str(folder.root.resolve()),
        classes=tuple(folder.classes()),
        sources={image.id: image for image in folder.real_images("train")},
        fit=recipe.dataset.fit,
        max_megapixels=recipe.dataset.max_megapixels,
        drawn_format=folder.drawn_format or "png",
        image_format=folder.meta("image_format") or "jpg",
        devices=worker_devices(recipe.backend.device, spec["device"]) if uses_torch(recipe.refine) else ("cpu",),
        dtype=spec["dtype"],
        threads=spec["threads"],
    )


def _tasks(folder: RunFolder, chunks: list[int]) -> Iterator[RefineTask]:
    """Rows are read when a worker is ready for them."""
    for chunk in chunks:
        yield RefineTask(chunk, tuple(folder.plan_rows(chunk)))


def _record(context: Context, result: Refined) -> None:
    """The files are in place; now the chunk counts."""
    with context.folder.transaction() as db:
        db.executemany("INSERT OR REPLACE INTO refined VALUES (?, ?)", result.shares)
    context.reporter.event("refined", chunk=result.chunk, images=len(result.shares), seconds=round(result.seconds, 3))


def summarise(folder: RunFolder, recipe: Recipe, refined: int, seconds: float) -> dict[str, Any]:
    """Counts of the whole plan; rate of what was refined now."""
    total, share = folder.db.execute("SELECT COUNT(*), COALESCE(AVG(original_share), 0.0) FROM refined").fetchone()
    operations = [step.op for step in recipe.refine]
    rate = refined / seconds if refined else 0.0
    again = "" if refined == total else f" ({total - refined:,} were there already)"
    speed = f" in {seconds:.0f} s ({rate:.1f} a second)" if refined else ""
    own = f"; {100 * share:.0f} % of their pixels are the originals'" if share else ""
    return {
        "line": f"{total:,} images refined ({', '.join(operations)}){again}{speed}{own}",
        "refined": total,
        "refined_now": refined,
        "operations": operations,
        "original_share": round(share, 6),
        "images_per_second": round(rate, 3),
    }
