"""What is learned from: the training split's images with captions; validation images for the held-out loss only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from variegate.backends.adapter import placeholder
from variegate.backends.base import BackendSpec, final_section, locate, resolve_backend, training_section
from variegate.backends.devices import own_device
from variegate.backends.folder import model_fingerprint, read_model
from variegate.backends.tokenizers import load_tokenizers
from variegate.captions import Telling, telling_of
from variegate.errors import DataError, Problem
from variegate.images import load_squares
from variegate.recipe import AdaptSection, BackendSection, Recipe
from variegate.records import ClassInfo, RealImage, content_id
from variegate.stages.adapt.lengths import cut_captions
from variegate.store import RunFolder
from variegate.templates import plain_name

PREVIEW = "adapt/preview.png"
HELD_OUT = 64  # validation images encoded for the held-out loss


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a course of learning is given."""

    classes: tuple[ClassInfo, ...]
    train: tuple[RealImage, ...]
    held_out: tuple[RealImage, ...]
    placeholders: tuple[str, ...]
    words: tuple[str, ...]  # what first token values come from
    telling: Telling  # of the training images
    captions: tuple[tuple[str, ...], ...]
    held_out_captions: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()


def gather(recipe: Recipe, folder: RunFolder) -> Material:
    """Training images, captions and placeholders; validation images for the held-out loss only.

    Raises DataError with everything that the recipe asks of the images and they do not have.
    """
    classes = tuple(folder.classes())
    train = tuple(sorted(folder.real_images("train"), key=lambda image: image.id))
    val = sorted(folder.real_images("val"), key=lambda image: image.id)
    held_out = tuple(val[round(k)] for k in np.linspace(0, len(val) - 1, min(HELD_OUT, len(val)))) if val else ()
    if not train:
        raise DataError(Problem("adapt", "there is no training image"))
    names = tuple(placeholder(info.label) for info in classes) if recipe.adapt.has_tokens else ()
    telling, held_out_telling = (telling_of(recipe, classes, images, names) for images in (train, held_out))
    captions, held_out_captions = (tuple(map(tuple, one.captions())) for one in (telling, held_out_telling))
    cuts = cut_captions(
        (text for texts in (*captions, *held_out_captions) for text in texts),
        dict.fromkeys(names, recipe.adapt.vectors),
        load_tokenizers(locate(training_section(recipe))[0]),
    )
    masked = sum(bool(image.mask) for image in train)
    problems = [*_lacking(recipe.adapt, masked, len(held_out)), *cuts.problems()]
    if problems:
        raise DataError(problems)
    warnings = cuts.warnings()
    if recipe.adapt.mask == "foreground" and masked < len(train):
        warnings.append(f"{len(train) - masked:,} of {len(train):,} training images have no mask and count whole")
    return Material(
        classes=classes,
        train=train,
        held_out=held_out,
        placeholders=names,
        words=tuple(plain_name(info) for info in classes),
        telling=telling,
        captions=captions,
        held_out_captions=held_out_captions,
        warnings=tuple(warnings),
    )


def _lacking(section: AdaptSection, num_masked: int, num_held_out: int) -> list[Problem]:
    """What the section asks for and no image has."""
    problems = []
    if section.mask == "foreground" and not num_masked:
        text = "foreground needs masks and no training image has one"
        problems.append(Problem("adapt.mask", text, "fill the table's mask column, or set adapt.mask=none"))
    if section.early_stop is not None and not num_held_out:
        text = "watches the held-out loss and there is no validation image"
        problems.append(Problem("adapt.early_stop", text, "add validation images, or leave it out"))
    return problems


def splits_hash(folder: RunFolder) -> str:
    """Of which image is in which split."""
    return content_id(sorted((image.sha256 or image.id, image.split) for image in folder.real_images()))


def labels_of(images: Sequence[RealImage]) -> list[int]:
    return [image.label for image in images]


def load_pixels(recipe: Recipe, images: Sequence[RealImage], size_px: int) -> np.ndarray:
    """uint8 [N, size_px, size_px, 3] as the model sees them."""
    section = recipe.dataset
    return load_squares([Path(image.path) for image in images], size_px, section.fit, section.max_megapixels)


def training_fingerprint(recipe: Recipe) -> str:
    """Of the weights that the finished adapter fits."""
    return model_fingerprint(*locate(final_section(recipe)))


def lesson_fingerprints(recipe: Recipe) -> tuple[str, ...]:
    """Of all weights that what is learned depends on."""
    sections = (training_section(recipe), final_section(recipe))
    return tuple(dict.fromkeys(model_fingerprint(*locate(section)) for section in sections))


def final_size_px(recipe: Recipe) -> int:
    return recipe.backend.size_px or read_model(*locate(recipe.backend)).size_px


def lesson_drawing(recipe: Recipe) -> dict[str, Any]:
    """What else of the recipe than adapt, data and texts changes what is learned: sizes, and how what is learned from is drawn."""
    backend, generate = training_section(recipe), recipe.generate
    found: dict[str, Any] = {"size_px": final_size_px(recipe), "dtype": backend.dtype}
    if recipe.adapt.prior.images or recipe.adapt.distill.pairs:
        found |= {"drawn": (backend.scheduler, backend.steps, backend.guidance_scale)}
    if recipe.adapt.distill.pairs:
        levels = generate.strength if generate.from_image else None
        found |= {"levels": levels, "keeps_class": generate.keeps_class}
    return found


def training_spec(recipe: Recipe) -> BackendSpec:
    """The backend that is trained and previews, in a dtype whose gradients do not vanish.

    A parent learns at the size of the model that draws: SDXL's own is 1024 px, that of its turbo model 512.
    """
    return _spec(recipe, training_section(recipe).model_copy(update={"size_px": final_size_px(recipe)}))


def final_spec(recipe: Recipe) -> BackendSpec:
    """The same of the backend that the finished adapter fits."""
    return _spec(recipe, final_section(recipe))


def _spec(recipe: Recipe, section: BackendSection) -> BackendSpec:
    spec = resolve_backend(section.model_copy(update={"device": own_device(section.device)}))
    dtype = recipe.adapt.dtype
    if dtype == "auto":
        dtype = "fp32" if spec.dtype == "fp16" else spec.dtype
    together = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of a team on this machine share its cores
    threads = max(spec.threads // together, 1)
    return replace(spec, dtype=dtype, compile=False, threads=threads)
