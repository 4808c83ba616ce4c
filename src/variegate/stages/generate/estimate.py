"""What a plan would cost, before anything is written: images, U-Net evaluations, disk, memory, seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from variegate.backends.base import (
    DIFFERENCE_NOISES,
    BackendSpec,
    evaluations,
    locate,
    resolve_backend,
    spec_id,
    training_section,
)
from variegate.backends.devices import image_bytes
from variegate.backends.folder import ModelFacts, read_model
from variegate.images import encode_image
from variegate.recipe import AdaptSection, Recipe
from variegate.records import ClassInfo, RealImage
from variegate.stages.generate.plan import FROM_TEXT, Plan, PlanBackend, make_plan
from variegate.stages.generate.pool import pool_of_names

BYTES_PER_PIXEL = 0.75  # JPEG at quality 95 without subsampling, photographs; measured instead when timing is on
DRAWN_BYTES_PER_PIXEL = 2.0  # PNG, photographs: what refine goes on with
PROGRAM_BYTES = 900 * 2**20  # Python with torch and diffusers loaded
MEASURED_IMAGES = 8
LEARNING_COST = 3.5  # U-Net evaluations that learning from an image costs: forward, backward, and the text encoder


class DataFacts(Protocol):
    """The part of the dataset stage's facts that counts here."""

    classes: Sequence[ClassInfo]

    def counts(self) -> Mapping[Any, Mapping[str, int]]: ...


def estimate(recipe: Recipe, facts: DataFacts, *, measure: bool = True) -> dict[str, Any]:
    """Counts and costs of adapting and drawing; with `measure` a few images are drawn, in memory only, to know the speed.

    Keys end in their unit. Raises what planning raises: ModelError, DataError.
    """
    real = [facts.counts()["train"][info.name] for info in facts.classes]
    if recipe.generate.method == "none":
        return {"images": 0, "real_training_images": sum(real), "line": "nothing to draw"}
    spec = resolve_backend(recipe.backend)
    model = read_model(*locate(recipe.backend))
    plan = _plan(recipe, facts.classes, real, spec, model)
    per_class = np.bincount(plan.target, minlength=len(facts.classes)).tolist()
    total = _evaluations(spec, plan)
    answer: dict[str, Any] = {
        "real_training_images": sum(real),
        "images": len(plan),
        "images_per_class": {info.name: count for info, count in zip(facts.classes, per_class, strict=True)},
        "chunks": len(plan.first),
        "batch": spec.batch,
        "unet_evaluations": total,
        "drawn_on": f"{spec.device} in {spec.dtype}, {spec.size_px} px, {spec.model}",
        "memory_gb": round((PROGRAM_BYTES + model.weight_bytes + spec.batch * _per_image(spec, model)) / 1e9, 2),
    }
    bytes_per_image = BYTES_PER_PIXEL * spec.size_px**2
    learned = images_learned(recipe.adapt, sum(real), len(facts.classes))
    if learned:
        answer["images_learned_from"] = learned
    if recipe.adapt.distill.pairs:
        answer |= {"pairs": recipe.adapt.distill.pairs, "pair_evaluations": pair_evaluations(recipe)}
    looked = mask_evaluations(recipe, sum(real))
    if looked:
        answer["mask_evaluations"] = looked
    if measure and len(plan):
        opening, per_evaluation, per_image, bytes_per_image = _measure(spec, plan)
        rivals = rival_evaluations(recipe.adapt, sum(real)) if learned else 0
        lesson = LEARNING_COST * learned + rivals + pair_evaluations(recipe)
        seconds = {"adapt": opening + per_evaluation * lesson} if learned else {}
        seconds["generate"] = opening + per_evaluation * (total + looked) + per_image * len(plan)
        answer["seconds"] = {stage: round(value, 1) for stage, value in seconds.items()}
    if recipe.refine:
        answer |= {"refined_images": len(plan), "operations": [step.op for step in recipe.refine]}
        bytes_per_image += DRAWN_BYTES_PER_PIXEL * spec.size_px**2
    answer["disk_mb"] = round(len(plan) * (bytes_per_image + 500) / 1e6, 2)  # 500: the row in run.db and metadata.jsonl
    return answer


def _evaluations(spec: BackendSpec, plan: Plan) -> int:
    pairs, counts = np.unique(np.stack([plan.steps, plan.passes]), axis=1, return_counts=True)
    passes = [max(len(plan.sequences[index]), 1) for index in pairs[1]]
    return sum(
        evaluations(spec, int(steps), number).total * int(count)
        for steps, number, count in zip(pairs[0], passes, counts, strict=True)
    )


def _per_image(spec: BackendSpec, model: ModelFacts) -> int:
    return image_bytes(latent_px=spec.size_px // model.downscale, width=model.width, dtype=spec.dtype, ways=spec.ways)


def _plan(
    recipe: Recipe, classes: Sequence[ClassInfo], real: Sequence[int], spec: BackendSpec, model: ModelFacts
) -> Plan:
    """The real plan on stand-ins for the images: the counts are the same, the ids are not."""
    images = [
        RealImage(f"{info.label}-{index}", "", info.label, "train")
        for info, count in zip(classes, real, strict=True)
        for index in range(count)
    ]
    backend = PlanBackend(spec_id(spec), spec.steps, model.levels, spec.batch)
    pool, masks = pool_of_names(classes), None if recipe.generate.mask == "none" else ["mask"] * len(images)
    return make_plan(classes, images, recipe.generate, pool, backend, negative="", seed=recipe.seed, masks=masks)


def images_learned(section: AdaptSection, num_images: int, num_classes: int) -> int:
    """Images that adapting goes through, each as often as it is seen."""
    if section.method in {"none", "file"}:
        return 0
    courses = 1 if section.joint else num_classes
    steps = courses * section.steps_for(math.ceil(num_images / courses))
    distilled = section.distill.steps if section.distill.pairs else 0
    return (steps * (2 if section.prior.images else 1) + distilled) * section.batch


def rival_evaluations(section: AdaptSection, num_images: int) -> int:
    """U-Net evaluations without learning that `adapt.focus` asks for."""
    return section.steps_for(num_images) * section.batch if section.focus else 0


def mask_evaluations(recipe: Recipe, num_images: int) -> int:
    """U-Net evaluations that `generate.mask_from: model` asks for: with two prompts, under each noise."""
    return 2 * DIFFERENCE_NOISES * num_images if recipe.generate.mask_from == "model" else 0


def pair_evaluations(recipe: Recipe) -> int:
    """U-Net evaluations of the pairs that a one-step model is taught with."""
    parent = training_section(recipe)
    return recipe.adapt.distill.pairs * parent.steps * (2 if parent.guidance_scale > 1.0 else 1)


def _measure(spec: BackendSpec, plan: Plan) -> tuple[float, float, float, float]:
    """(seconds to open the model, seconds a U-Net evaluation of one image, seconds an image besides, bytes an image), from
    drawing a few of the commonest kind with the model as it is.

    Encoding and decoding are apart, as learning does neither, and with one step they are most of an image.
    """
    from variegate.backends.diffusion import DiffusionBackend

    count = min(MEASURED_IMAGES, spec.batch, len(plan))
    values, rows = np.unique(plan.steps, return_index=True)
    first = int(rows[len(rows) // 2])
    from_text = plan.source[first] == FROM_TEXT
    start = time.monotonic()
    with DiffusionBackend.open(spec) as backend:
        opened = time.monotonic() - start
        rng = np.random.default_rng(0)
        squares = rng.integers(0, 256, (count, spec.size_px, spec.size_px, 3), dtype=np.uint8)
        prompts, seeds = [plan.prompts[plan.prompt[first]]] * count, list(range(count))
        repaint = np.ones(squares.shape[:3], bool) if any(plan.masks[:1]) else None

        def draw(steps: int) -> tuple[float, float, np.ndarray]:
            start = time.monotonic()
            sources = None if from_text else backend.encode_sources(squares)
            masked = backend.encode_sources(squares, repaint) if spec.kind == "inpaint" else None
            strengths = [float(plan.strength[first])] * count
            encoded = time.monotonic()
            latents = backend.draw_latents(
                prompts, sources, strengths=strengths, steps=steps, seeds=seeds, repaint=repaint, masked=masked
            ).cpu()
            evaluated = time.monotonic()
            pixels = backend.decode(latents)
            return evaluated - encoded, time.monotonic() - evaluated + encoded - start, pixels

        steps = spec.steps if from_text or spec.kind == "edit" else min(int(values[len(values) // 2]), 2, spec.steps)
        draw(steps)  # the first call sets up kernels
        evaluating, besides, pixels = draw(steps)
    size = float(np.mean([len(encode_image(image)) for image in pixels]))
    return opened, evaluating / count / evaluations(spec, steps).total, besides / count, size
