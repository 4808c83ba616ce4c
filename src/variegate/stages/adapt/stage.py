"""Adapt stage: teach the drawing model the classes, or take an adapter that exists; writes adapt/. Glue only."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from variegate import __version__
from variegate.backends.adapter import (
    ADAPTER,
    FACTS,
    LORA,
    TOKENS,
    AdapterFacts,
    Method,
    adapter_hash,
    check_fit,
    forget_adapter,
    read_adapter,
    write_adapter,
)
from variegate.backends.base import BackendSpec, final_section, locate, spec_id, training_section, with_adapter
from variegate.backends.folder import read_model
from variegate.errors import DataError, ModelError, Problem
from variegate.files import file_sha256
from variegate.pipeline import Context
from variegate.recipe import Recipe
from variegate.records import ClassInfo, content_id, seed_from
from variegate.stages.adapt.checkpoints import FORMAT
from variegate.stages.adapt.checks import model_problems, word_problems
from variegate.stages.adapt.material import (
    PREVIEW,
    Material,
    final_spec,
    gather,
    labels_of,
    lesson_drawing,
    lesson_fingerprints,
    load_pixels,
    splits_hash,
    training_fingerprint,
    training_spec,
)
from variegate.stages.adapt.optimizers import check_optimizer
from variegate.store import RunFolder, explained

if TYPE_CHECKING:
    from variegate.stages.adapt.learn import Course

NAME = "adapt"
LOG = "log.jsonl"
PARENT = f"{ADAPTER}/parent"  # the adapter of the many-step model, where it is distilled into another


def inputs(recipe: Recipe) -> dict[str, Any]:
    """What the adapter depends on besides the data; nothing of it when none is used."""
    section = recipe.adapt
    if section.method == "none":
        return {"adapt": "none"}
    keys = {"adapt": section.model_dump(), "seed": recipe.seed, "backend": recipe.backend.model_dump()}
    keys |= {"model": lesson_fingerprints(recipe), "drawing": lesson_drawing(recipe)}
    if section.method == "file":
        return keys | {"file": adapter_hash(Path(str(section.path)))}
    return keys | {"texts": recipe.prompts.text, "environments": recipe.prompts.environments, "fit": recipe.dataset.fit}


def check(recipe: Recipe, classes: Sequence[ClassInfo]) -> None:
    """Raise UserError with everything that would stop adapting, before anything slow."""
    section = recipe.adapt
    if section.method == "none":
        return
    if section.method == "file":
        problems = check_fit(
            Path(str(section.path)),
            fingerprint=training_fingerprint(recipe),
            model=final_section(recipe).model,
            classes=[info.name for info in classes],
        )
        problems += _use_problems(recipe)
        if problems:
            raise ModelError(problems)
        return
    check_optimizer(section.optimizer)
    model, unet = locate(training_section(recipe))
    facts = read_model(model, unet)
    if facts.kind != "text-to-image":
        text = f"{training_section(recipe).model} is a model of kind {facts.kind}, which this cannot teach"
        remedy = "name the text-to-image model it was made from in adapt.model: its LoRA fits here too"
        raise ModelError(Problem("adapt.model", text, remedy))
    if facts.levels is not None and section.timesteps != "last":
        text = f"{training_section(recipe).model} is distilled: it knows {len(facts.levels)} noise levels and this would teach it all"
        remedy = "name its many-step parent in adapt.model; adapt.timesteps=last is DasDiff's rule, which blurs"
        raise ModelError(Problem("adapt.model", text, remedy))
    problems = [*model_problems(recipe), *word_problems(recipe, classes)]
    if problems:
        raise ModelError(problems)
    if section.focus and len(classes) < 2:
        raise DataError(Problem("adapt.focus", "tells a class from others and there is one class", "set adapt.focus=0"))
    if section.mask == "foreground" and not _may_have_masks(recipe.dataset.path):
        raise DataError(
            Problem("adapt.mask", "foreground needs a mask for each image", "give a table with a mask column")
        )


def _may_have_masks(data: str) -> bool:
    """Tables have them, also those in a folder; class folders, hubs and digits do not."""
    path = Path(data).expanduser()
    if data == "builtin:meadow" or path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"):
        return True
    return any(path.glob("metadata.*")) or any(path.glob("*/metadata.*"))


def _use_problems(recipe: Recipe) -> list[Problem]:
    """What is drawn with and the adapter at adapt.path does not hold."""
    path, method = Path(str(recipe.adapt.path)), recipe.generate.method
    if read_adapter(path).has_tokens:
        return []
    if method.startswith("ti-"):
        text, remedy = f"{method} draws with learned tokens and {path} holds a LoRA alone", f"use diff-{method[3:]}"
        return [Problem("generate.method", text, remedy)]
    if recipe.generate.token_noise.std:
        return [Problem("generate.token_noise", f"needs learned tokens and {path} has none", "leave it out")]
    return []


def run(context: Context) -> dict[str, Any]:
    """Learn, or copy, the adapter; returns the counted line, losses and warnings."""
    section = context.recipe.adapt
    if section.method == "none":
        return {"line": "nothing to learn: the model draws as it is", "method": "none"}
    if section.method == "file":
        return _take(context)
    return _learn(context, section.method)


# ------------------------------------------------------------------------------------------ an adapter that exists


def _take(context: Context) -> dict[str, Any]:
    from variegate.stages.adapt.preview import preview_warnings

    recipe, folder = context.recipe, context.folder
    source = Path(str(recipe.adapt.path))
    names = [info.name for info in folder.classes()]
    problems = check_fit(
        source,
        fingerprint=training_fingerprint(recipe),
        model=final_section(recipe).model,
        classes=names,
        splits=splits_hash(folder),
    )
    if problems:
        raise ModelError(problems)
    facts = read_adapter(source)
    with explained(folder.root):
        folder.path(ADAPTER).mkdir(exist_ok=True)
        is_own = source.resolve() == folder.path(ADAPTER).resolve()
        if not is_own:
            forget_adapter(folder.path(ADAPTER))
        for name in (*TOKENS, LORA, FACTS):  # the facts last: a folder that has them is whole
            if (source / name).is_file() and not is_own:
                shutil.copyfile(source / name, folder.path(ADAPTER) / f".{name}.tmp")
                (folder.path(ADAPTER) / f".{name}.tmp").replace(folder.path(ADAPTER) / name)
    _register(folder)
    warnings = preview_warnings(facts.scores, len(names))
    if not facts.splits:
        warnings.append("the adapter does not tell which images it was made from: it may have seen test images")
    line = f"{facts.method} for {len(names)} classes taken from {source.name}"
    return {"line": "; ".join([line, *warnings]), "method": facts.method, "warnings": warnings}


def _register(folder: RunFolder) -> None:
    for name in (*TOKENS, LORA, FACTS):
        if (folder.path(ADAPTER) / name).is_file():
            folder.put_artefact(NAME, name, f"{ADAPTER}/{name}")


# ------------------------------------------------------------------------------------------ learning


def _learn(context: Context, method: Method) -> dict[str, Any]:
    recipe, folder = context.recipe, context.folder
    material = gather(recipe, folder)
    if not recipe.adapt.distill.pairs:
        return _first_lesson(context, method, material, ADAPTER)
    parent = json.loads(folder.meta(PARENT) or "{}")
    if parent.get("key") != _key(recipe, material):
        summary = _first_lesson(context, method, material, PARENT)
        parent = {"key": _key(recipe, material), "summary": summary}
        folder.set_meta(PARENT, json.dumps(parent))
    return _second_lesson(context, method, material, parent["summary"])


def _key(recipe: Recipe, material: Material, *more: object) -> str:
    """Of all that a course of learning depends on; `more` is what the second lesson adds."""
    spec = training_spec(recipe)
    return content_id(
        __version__, FORMAT, recipe.adapt.model_dump(exclude={"distill"}), recipe.seed, recipe.dataset.fit,
        spec.fingerprint, spec.dtype, spec.size_px,
        [(image.id, image.sha256) for image in (*material.train, *material.held_out)], _mask_hashes(recipe, material),
        material.words, material.captions, material.held_out_captions,
        (spec.scheduler, spec.steps, spec.guidance_scale) if recipe.adapt.prior.images else None, *more,
    )  # fmt: skip


def _first_lesson(context: Context, method: Method, material: Material, where: str) -> dict[str, Any]:
    """The training images themselves; the adapter goes to the folder `where` of the run."""
    from variegate.backends.diffusion import DiffusionBackend
    from variegate.stages.adapt.learn import Course

    recipe, folder, start = context.recipe, context.folder, time.monotonic()
    spec = training_spec(recipe)
    with explained(folder.root), DiffusionBackend.open(spec) as backend:
        course = Course(context, backend, material, _key(recipe, material))
        course.run()
        _write(folder, where, _facts(context, method, material, course, spec), course)
    return _summary(recipe, material, course, time.monotonic() - start)


def _second_lesson(context: Context, method: Method, material: Material, parent: dict[str, Any]) -> dict[str, Any]:
    """What the adapted parent draws, taught to the one-step model that will draw."""
    from variegate.backends.diffusion import DiffusionBackend
    from variegate.stages.adapt.distill import deal, draw_pairs, noise_levels, pair_captions
    from variegate.stages.adapt.learn import Course, Taught
    from variegate.stages.adapt.trainee import learned_values
    from variegate.stages.adapt.views import encode

    recipe, folder, start = context.recipe, context.folder, time.monotonic()
    section, seed, levels = recipe.adapt, seed_from(recipe.seed, "distill"), noise_levels(recipe)
    parent_spec = with_adapter(training_spec(recipe), folder.path(PARENT), "all")
    labels, count = labels_of(material.train), section.distill.pairs
    told, begun = (deal(labels, count, seed_from(seed, of)) for of in ("told", "begun"))
    captions = pair_captions(recipe, material.classes, [material.train[k] for k in told], material.placeholders, seed)
    with explained(folder.root), DiffusionBackend.open(parent_spec) as backend:
        latents = encode(backend, load_pixels(recipe, material.train, parent_spec.size_px))
        sources = latents[told if recipe.generate.keeps_class else begun]
        with context.reporter.bar("drawing pairs", len(captions)) as bar:
            pairs, looked_at = draw_pairs(backend, sources, captions, levels, folder.root, flip=section.flip, seed=seed,
                                          advance=bar.advance)  # fmt: skip
    spec = final_spec(recipe)
    key = _key(recipe, material, section.distill.model_dump(), spec.fingerprint, spec_id(parent_spec), levels,
               recipe.generate.keeps_class)  # fmt: skip
    with explained(folder.root), DiffusionBackend.open(spec) as backend:
        values = learned_values(folder.path(PARENT), section.alpha, section.rank)
        course = Course(context, backend, material, key, Taught(pairs, looked_at if len(looked_at) else None, values))
        course.run()
        _write(folder, ADAPTER, _facts(context, method, material, course, spec), course)
    seconds = time.monotonic() - start
    return _distilled(parent, _summary(recipe, material, course, seconds), len(captions), recipe.backend.model)


def _distilled(parent: dict[str, Any], own: dict[str, Any], pairs: int, model: str) -> dict[str, Any]:
    """One summary of both lessons: what the parent learned, and how far the one-step model follows it."""
    scores, line = own["scores"], f"{parent['line']}; then distilled into {model} from {pairs:,} pairs"
    line += f" in {own['steps']:,} steps, {own['seconds']:.0f} s"
    if "held_out_first" in scores:
        line += f", distance to the parent {scores['held_out_first']:.4f} -> {scores['held_out_last']:.4f}"
    both = {key: round(parent[key] + own[key], 3) for key in ("steps", "images_seen", "seconds")}
    shown = {key: own[key] for key in ("preview", "preview_columns")}
    of_previews = {key: value for key, value in scores.items() if not key.startswith("held_out")}
    learned = {key: value for key, value in parent["scores"].items() if key.startswith("held_out")}
    warnings = list(dict.fromkeys([*parent["warnings"], *own["warnings"]]))
    return parent | both | shown | {
        "line": line, "warnings": warnings, "scores": learned | of_previews, "parent": parent, "distilled": scores
    }  # fmt: skip


def _facts(context: Context, method: Method, material: Material, course: Course, spec: BackendSpec) -> AdapterFacts:
    recipe = context.recipe
    return AdapterFacts(
        method=method,
        classes=tuple(info.name for info in material.classes),
        placeholders=material.placeholders,
        vectors=recipe.adapt.vectors,
        base={"model": spec.model, "revision": spec.revision, "fingerprint": spec.fingerprint},
        data=content_id(sorted((image.id, image.sha256) for image in material.train)),
        splits=splits_hash(context.folder),
        recipe={"seed": recipe.seed, "adapt": course.section.model_dump(), "prompts": recipe.prompts.model_dump()},
        versions=_versions(),
        scores=course.scores(),
    )


def _write(folder: RunFolder, where: str, facts: AdapterFacts, course: Course) -> None:
    write_adapter(folder.path(where), facts, course.trainee.learned_tokens(), course.trainee.learned_lora())
    folder.write(f"{where}/{LOG}", "".join(json.dumps(line) + "\n" for line in course.log))
    if where == ADAPTER:
        _register(folder)


def _mask_hashes(recipe: Recipe, material: Material) -> list[str]:
    """Of the masks' contents, where the loss reads them: an edited mask is another lesson."""
    if recipe.adapt.mask == "none":
        return []
    return [file_sha256(Path(image.mask)) if image.mask else "" for image in (*material.train, *material.held_out)]


def _summary(recipe: Recipe, material: Material, course: Course, seconds: float) -> dict[str, Any]:
    section, scores = course.section, course.scores()
    line = f"{section.method} for {len(material.classes)} classes, {course.steps_done:,} steps in {seconds:.0f} s"
    if "held_out_step" in scores:  # with early stop: the best is kept, not the last
        line += f", held-out loss {scores['held_out_first']:.4f} -> {scores['held_out_best']:.4f}"
        line += f", that of step {scores['held_out_step']:,}, which is kept"
    elif "held_out_first" in scores:
        line += f", held-out loss {scores['held_out_first']:.4f} -> {scores['held_out_last']:.4f}"
    if "preview_agreement" in scores:
        sure, right = 100 * scores["preview_agreement"], 100 * scores["judge_accuracy"]
        line += f", previews agree with their class {sure:.0f} % (judge right on {right:.0f} % of real images)"
    return {
        "line": "; ".join([line, *course.warnings]),
        "method": section.method,
        "classes": len(material.classes),
        "images": len(material.train),
        "trained_parameters": course.num_parameters,
        "steps": course.steps_done,
        "images_seen": course.steps_done * section.batch,
        "images_per_second": round(course.rate, 3),
        "seconds": round(seconds, 3),
        "scores": scores,
        "log": course.log,
        "preview": PREVIEW if course.previewed is not None else None,
        "preview_columns": [
            [material.classes[label].name, prompts[0]]
            for label, prompts in zip(course.plan.labels, course.plan.prompts, strict=True)
        ],
        "warnings": course.warnings,
    }


def _versions() -> dict[str, str]:
    from importlib import metadata

    return {"variegate": __version__} | {
        name: metadata.version(name) for name in ("torch", "diffusers", "peft", "transformers")
    }
