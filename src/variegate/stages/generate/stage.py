"""Generate stage: plan every image, draw the chunks that are missing, export the table. Glue only."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from variegate.backends.adapter import ADAPTER, adapter_hash, parts_used
from variegate.backends.base import BackendSpec, evaluations, locate, resolve_backend, spec_id, with_adapter
from variegate.backends.devices import num_workers, resolve_device, worker_devices
from variegate.backends.folder import model_fingerprint, read_model
from variegate.card import write_card
from variegate.errors import ModelError, Problem, RunFolderError
from variegate.executors.local import run_tasks
from variegate.masks import FOLDER as FOUND_MASKS
from variegate.masks import masking_of, refuse_unmasked
from variegate.metadata import write_metadata
from variegate.pipeline import Context
from variegate.recipe import Recipe
from variegate.records import RealImage, content_id
from variegate.stages.generate import class_masks
from variegate.stages.generate.draw import CACHE, Drawn, DrawSetup, DrawTask, DrawWorker
from variegate.stages.generate.estimate import estimate
from variegate.stages.generate.ledger import write_plan
from variegate.stages.generate.plan import PlanBackend, make_plan
from variegate.stages.generate.pool import parse_pool
from variegate.store import RunFolder, drawn_path, explained, sweep_temporary, synthetic_path

__all__ = ["NAME", "check", "estimate", "inputs", "intact", "run"]
NAME = "generate"
YOUNGER = ("mask_from", "mask_text")  # keys that came later: as long as they say nothing, runs begun before them go on
DRAWN_FORMAT = "png"  # of images that refine goes on with: nothing is lost before it
IMAGE_FORMAT = "jpg"  # quality 95 without chroma subsampling: small, and what training code reads fastest


def inputs(recipe: Recipe) -> dict[str, Any]:
    """The label section is here because metadata.jsonl holds soft labels."""
    unset = {key for key in YOUNGER if getattr(recipe.generate, key) == type(recipe.generate).model_fields[key].default}
    generate = recipe.generate.model_dump(exclude=unset)
    drawn = {"generate": generate, "backend": recipe.backend.model_dump(), "seed": recipe.seed}
    return {
        **drawn,
        "negative": recipe.prompts.negative,
        "fit": recipe.dataset.fit,
        "label": recipe.train.label.model_dump(),
        **({"drawn": DRAWN_FORMAT} if recipe.refine else {}),  # where and how the images are written
    }


def check(recipe: Recipe, images: Sequence[RealImage]) -> None:
    """Raise DataError where the training images lack masks that the recipe draws with, or have useless ones."""
    if recipe.generate.mask == "none" or recipe.generate.mask_from == "model":
        return
    refuse_unmasked(images)
    masking = masking_of(recipe, recipe.backend.size_px or read_model(*locate(recipe.backend)).size_px)
    if masking:
        masking.check(images)


def run(context: Context) -> dict[str, Any]:
    if context.recipe.generate.method == "none":
        return {"line": "nothing to draw", "drawn": 0, "seconds": 0.0, "unet_evaluations": 0, "images_per_second": 0.0}
    with explained(context.folder.root):
        # a worker may have been killed where this process was not
        for part in ("synthetic", "drawn", CACHE, FOUND_MASKS):
            sweep_temporary(context.folder.root / part)
    spec = prepare(context)
    start = time.monotonic()
    drawn = draw_pending(context, spec)
    seconds = time.monotonic() - start
    if not context.recipe.refine:
        label = context.recipe.train.label
        write_metadata(context.folder, gamma=label.gamma, kappa=label.kappa)
        write_card(context.folder, context.recipe)
    summary = summarise(context.folder, spec, drawn, seconds)
    # masks may be there from before the recipe was changed
    warnings = class_masks.mask_warnings(context.folder) if context.recipe.generate.mask_from == "model" else []
    return summary | {"line": "; ".join([summary["line"], *warnings]), "warnings": warnings}


def intact(context: Context) -> bool:
    """Whether every image recorded as drawn is still there; the pipeline asks before it takes the stage as done."""
    return not _lost_chunks(context.folder)


def _lost_chunks(folder: RunFolder) -> list[int]:
    if folder.drawn_format:
        return folder.lost_chunks(drawn_path, folder.drawn_format)
    return folder.lost_chunks(synthetic_path, IMAGE_FORMAT)


def prepare(context: Context) -> BackendSpec:
    """The plan in run.db and the backend it was made for: taken as they are when nothing they depend on has changed."""
    recipe, folder = context.recipe, context.folder
    model, unet = locate(recipe.backend)
    prompts = folder.path(folder.artefacts("prompts")["prompts"]).read_text(encoding="utf-8").rstrip("\n").split("\n")
    images = _sources(folder)
    data: list[tuple[object, ...]] = [(image.id, image.label, image.sha256) for image in images]
    fingerprint = model_fingerprint(model, unet)
    parts = parts_used(recipe.generate.method)
    adapter = adapter_hash(folder.path(ADAPTER)) if parts != "none" else ""
    size_px, by_model = recipe.backend.size_px or read_model(model, unet).size_px, recipe.generate.mask_from == "model"
    masking = masking_of(recipe, size_px)
    if masking:
        data += class_masks.told_of(context, images) if by_model else [(mask,) for mask in masking.keys(images)]
    key = content_id(inputs(recipe), fingerprint, adapter, prompts, data, [info.name for info in folder.classes()])
    stored = folder.meta("backend")
    if stored and folder.meta("plan_key") == key:
        lost = _lost_chunks(folder)
        with folder.transaction() as db:
            db.executemany("UPDATE chunks SET state = 'pending' WHERE chunk = ?", ((chunk,) for chunk in lost))
        spec = _same_place(BackendSpec(**json.loads(stored)), str(model), str(unet or ""))
        return with_adapter(spec, folder.path(ADAPTER), parts)
    if "done" in folder.chunk_states():
        text = "holds images drawn from other data, prompts, model or adapter weights than there are now"
        raise RunFolderError(Problem(str(folder.root), text, "choose another --out folder"))
    spec = with_adapter(resolve_backend(recipe.backend), folder.path(ADAPTER), parts)
    classes = folder.classes()
    pasted = ("pasted",) if recipe.generate.mask_paste else ()
    backend = PlanBackend(
        content_id(spec_id(spec), recipe.dataset.fit, recipe.generate.token_noise.relative, *pasted),
        spec.steps,
        read_model(model, unet).levels,
        spec.batch,
    )
    masks = None
    if masking:
        images = class_masks.with_class_masks(context, spec, images) if by_model else images
        masks = masking.keys(images)
        masking.check(images)  # `check` saw those that were there before the run
    pool = parse_pool(prompts, classes, images)
    negative, seed = recipe.prompts.negative, recipe.seed
    plan = make_plan(classes, images, recipe.generate, pool, backend, negative=negative, seed=seed, masks=masks)
    meta = {"plan_key": key, "backend": json.dumps(spec.to_json()), "image_format": IMAGE_FORMAT}
    meta["drawn_format"] = DRAWN_FORMAT if recipe.refine else ""
    write_plan(folder, plan, meta)
    context.reporter.event("plan", images=len(plan), chunks=len(plan.first), backend=spec.to_json())
    return spec


def _sources(folder: RunFolder) -> list[RealImage]:
    return sorted(folder.real_images("train"), key=lambda image: image.id)


def _same_place(spec: BackendSpec, path: str, unet: str) -> BackendSpec:
    """The stored backend with the model's present folders; refuses a machine that cannot repeat it."""
    try:
        resolve_device(spec.device)
    except ModelError as exc:
        text = f"was planned on {spec.device}, which is not here; other devices would draw other images"
        raise RunFolderError(
            Problem("backend.device", text, "go on where it is, or choose a new --out folder")
        ) from exc
    return replace(spec, path=path, unet=unet)


def draw_pending(context: Context, spec: BackendSpec) -> int:
    """Draw every chunk that is not done; returns the number of images drawn now."""
    folder = context.folder
    pending = folder.pending_chunks()
    if not pending:
        return 0
    query = "SELECT SUM(num_rows), COALESCE(SUM(num_rows) FILTER (WHERE state = 'done'), 0) FROM chunks"
    total, done = folder.db.execute(query).fetchone()
    setup = draw_setup(context, spec)
    workers = num_workers(context.workers, len(pending), setup.devices)
    if workers < min(context.workers, len(pending)):
        context.reporter.line(
            f"generate: {workers} of {context.workers} workers draw, one for each GPU like {spec.device}"
        )
    results = run_tasks(partial(DrawWorker, setup), _tasks(folder, pending), workers, log_dir=folder.root / "logs")
    with explained(folder.root), context.reporter.bar("drawing", total, done=done) as bar:
        for _, result in results:
            _record(context, result)
            bar.advance(result.num_images)
    return total - done


def draw_setup(context: Context, spec: BackendSpec) -> DrawSetup:
    """What every worker is told."""
    folder, recipe = context.folder, context.recipe
    sources, masking = _sources(folder), masking_of(recipe, spec.size_px)
    if masking and recipe.generate.mask_from == "model":
        sources = class_masks.with_class_masks(context, spec, sources)
    return DrawSetup(
        spec=spec,
        devices=worker_devices(recipe.backend.device, spec.device),
        root=str(folder.root.resolve()),
        classes=tuple(folder.classes()),
        sources=tuple(sources),
        fit=recipe.dataset.fit,
        max_megapixels=recipe.dataset.max_megapixels,
        image_format=folder.drawn_format or IMAGE_FORMAT,
        is_refined=folder.drawn_format is not None,
        relative_token_noise=recipe.generate.token_noise.relative,
        masking=masking,
        masks=tuple(masking.keys(sources)) if masking else (),
        paste=recipe.generate.mask_paste,
    )


def _tasks(folder: RunFolder, chunks: list[int]) -> Iterator[DrawTask]:
    """Rows are read when a worker is ready for them."""
    for chunk in chunks:
        yield DrawTask(chunk, tuple(folder.plan_rows(chunk)))


def _record(context: Context, result: Drawn) -> None:
    """The files are in place; now the chunk counts."""
    note = f"memory ran out: drawn in {result.parts} parts" if result.parts > 1 else None
    with context.folder.transaction() as db:
        values = (result.seconds, note, result.chunk)
        db.execute("UPDATE chunks SET state = 'done', seconds = ?, note = ? WHERE chunk = ?", values)
    context.reporter.event(
        "chunk", chunk=result.chunk, images=result.num_images, seconds=round(result.seconds, 3), parts=result.parts
    )
    if note:
        context.reporter.line(f"generate: chunk {result.chunk}: {note}; set backend.batch lower to avoid it")


def summarise(folder: RunFolder, spec: BackendSpec, drawn: int, seconds: float) -> dict[str, Any]:
    """Counts of the whole plan; rate of what was drawn now."""
    query = "SELECT steps, passes, COUNT(*) FROM plan GROUP BY steps, passes ORDER BY steps"
    steps = folder.db.execute(query).fetchall()
    total = sum(count for *_, count in steps)
    done_by_now = folder.db.execute("SELECT COALESCE(SUM(seconds), 0), COUNT(*) FROM chunks").fetchone()
    rate = drawn / seconds if drawn else 0.0
    evaluated = sum(evaluations(spec, one, max(len(passes.split()), 1)).total * count for one, passes, count in steps)
    again = "" if drawn == total else f" ({total - drawn:,} were there already)"
    speed = f" in {seconds:.0f} s ({rate:.1f} a second)" if drawn else ""
    return {
        "line": f"{total:,} images drawn{again}{speed}, {evaluated:,} U-Net evaluations",
        "drawn": total,
        "drawn_now": drawn,
        "seconds": round(seconds, 3),
        "chunk_seconds": round(done_by_now[0], 3),
        "images_per_second": round(rate, 3),
        "unet_evaluations": evaluated,
        "chunks": done_by_now[1],
        "batch": spec.batch,
        "backend": {key: value for key, value in spec.to_json().items() if key not in {"path", "adapter", "unet"}},
    }
