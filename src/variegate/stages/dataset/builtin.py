"""The data sets that come along: builtin:meadow (drawn butterflies) and builtin:digits (scikit-learn's handwriting)."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import Lock

import numpy as np

from variegate.errors import DataError, Problem
from variegate.images import encode_image, resize_square
from variegate.recipe import DatasetSection, MeadowSection
from variegate.records import Split
from variegate.stages.dataset.listing import FoundImage, Listing
from variegate.stages.dataset.meadow import (
    HABITAT_PHRASES,
    MAX_SIZE_PX,
    MIN_SIZE_PX,
    SPLITS,
    UNCOMMON_TEST,
    Meadow,
    make_meadow,
    meadow_names,
    meadow_species,
)
from variegate.stages.dataset.meadow import describe as describe_species

NAMES = ("digits", "meadow")
_MASKED: tuple[Split, ...] = ("train", "val")  # what is drawn from and learned from
DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def read_builtin(name: str, dataset: DatasetSection, seed: int) -> Listing:
    """List a built-in data set without drawing it; raises DataError for an unknown one."""
    if name == "meadow":
        return _meadow(dataset, seed)
    if name == "digits":
        return _digits(dataset.size_px)
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean builtin:{near[0]}?" if near else f"built in: {', '.join(NAMES)}"
    raise DataError(Problem(f"builtin:{name}", "no such built-in data set", hint))


def _meadow(dataset: DatasetSection, seed: int) -> Listing:
    """Species from meadow.seed, training images by the recipe's seed; long tails and shots are left to the splits."""
    size_px, options = dataset.size_px, dataset.meadow
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        what = f"is drawn at {MIN_SIZE_PX} to {MAX_SIZE_PX} px, dataset.size_px is {size_px}"
        raise DataError(
            Problem("builtin:meadow", what, f"--set dataset.size_px={np.clip(size_px, MIN_SIZE_PX, MAX_SIZE_PX)}")
        )
    names = meadow_names(options.n_species, options.seed)
    counts: dict[Split, int] = {"train": _num_training(dataset), "val": options.n_val, "test": options.n_test}
    if options.uncommon_test:
        counts[UNCOMMON_TEST] = options.n_test
    images = []
    for split, count in counts.items():
        part = _Part(options, count, size_px, seed, split)
        for number, class_name in enumerate(names):
            for index in range(count):
                place = number * count + index
                png, notes = partial(_meadow_png, part, place), partial(_meadow_notes, part, place)
                mask = partial(_meadow_mask, part, place) if split in _MASKED else None
                name = f"{split}/{class_name}/{index:04d}"
                images.append(FoundImage(name, class_name, split, png, mask=mask, notes=notes))
    images.sort(key=lambda image: image.name)
    species = meadow_species(options.n_species, options.seed)
    # A description stands in for a name: "a photo of a {description}" is then what describe says.
    texts = (describe_species(one).removeprefix("a photo of a ") for one in species)
    descriptions = tuple(zip(names, texts, strict=True))
    return Listing("builtin:meadow", tuple(images), descriptions=descriptions, drawn_here=True, groups_split=False)


def _num_training(dataset: DatasetSection) -> int:
    """Enough images a species that `shots` are left once validation has had its share."""
    count, shots = dataset.meadow.n_per_species, dataset.shots or 0
    held_out = 0 if dataset.meadow.n_val else dataset.val_fraction
    while count - (max(1, round(held_out * count)) if held_out else 0) < shots:
        count += 1
    return count


@dataclass(frozen=True, slots=True)
class _Part:
    """One split of a meadow; images of it are drawn together, when the first is asked for."""

    options: MeadowSection
    count: int  # images a species
    size_px: int
    seed: int
    split: Split


_drawing = Lock()  # several threads ask at once, and lru_cache would draw the part for each of them


def _draw(part: _Part) -> Meadow:
    with _drawing:
        return _make(part)


# a thread that waited long may still ask for the first part when others are at the last
@lru_cache(maxsize=len(SPLITS))
def _make(part: _Part) -> Meadow:
    options, bias = part.options, part.options.habitat_bias
    return make_meadow(
        options.n_species, part.count, part.size_px, bias, seed=options.seed, draw=part.seed, split=part.split
    )


def _meadow_png(part: _Part, index: int) -> bytes:
    return encode_image(_draw(part).images[index], "png")


def _meadow_mask(part: _Part, index: int) -> bytes:
    return encode_image(np.repeat(_draw(part).masks[index, ..., None], 3, axis=2) * np.uint8(255), "png")


def _meadow_notes(part: _Part, index: int) -> tuple[str, str]:
    meadow = _draw(part)
    return HABITAT_PHRASES[meadow.habitats[index]], meadow.captions[index]


def _digits(size_px: int) -> Listing:
    labels = _load_digits()[1]
    images = []
    for label, class_name in enumerate(DIGIT_NAMES):
        for index, row in enumerate(np.flatnonzero(labels == label).tolist()):
            content = partial(_digit_png, row, size_px)
            images.append(FoundImage(f"{class_name}/{index:04d}", class_name, None, content))
    images.sort(key=lambda image: image.name)
    return Listing("builtin:digits", tuple(images), drawn_here=True)


@lru_cache(maxsize=1)
def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """(images float [1797, 8, 8] in 0..16, labels [1797])."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target


def _digit_png(row: int, size_px: int) -> bytes:
    grey = np.round(_load_digits()[0][row] * (255 / 16)).astype(np.uint8)
    return encode_image(resize_square(np.repeat(grey[..., None], 3, axis=2), size_px), "png")
