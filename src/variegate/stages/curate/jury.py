"""A jury: the recipe's own classifier, trained more than once on the real training images alone, or one from a file. Needs torch.

It asks of a synthetic image what a classifier of the real ones would call it. It shares no weights and no seeds with the
classifiers that the train stage compares.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from variegate.classifier import labels, mixing
from variegate.classifier.fit import FitData, LabelledImages, choose_compute, fit, predict, settings_of
from variegate.classifier.models import Classifier, build_model, open_classifier
from variegate.recipe import Recipe
from variegate.records import seed_from

JURORS = 2


class Jury:
    """Classifiers that agree on one opinion; an `Encoder` whose features are log-probabilities [N, C].

    `places` are where the jurors have the C classes, which may be some of those that they tell apart.
    """

    def __init__(self, device: str, size_px: int, jurors: Sequence[Classifier], places: Sequence[int]) -> None:
        self.size_px, self._jurors, self._places = size_px, jurors, list(places)
        self._compute = choose_compute(device)

    def features(self, pixels: np.ndarray) -> np.ndarray:
        opinions = [predict(juror, pixels, self._compute)[:, self._places] for juror in self._jurors]
        return np.log(np.mean(opinions, axis=0).clip(1e-9))


def num_steps(recipe: Recipe, num_real: int) -> int:
    """Optimiser steps of each juror: as many as an arm of the comparison has."""
    section = recipe.train
    return mixing.num_steps(steps=section.steps, epochs=section.epochs, num_real=num_real, batch=section.batch)


def teach_jury(
    recipe: Recipe, pixels: np.ndarray, truth: Sequence[int], num_classes: int, on_step: Callable[[int], None]
) -> Jury:
    """Train every juror to its last step; no image is held back and none is chosen by."""
    section = recipe.train
    targets = labels.smooth(labels.one_hot(truth, num_classes), section.label.smoothing)
    none = LabelledImages(pixels[:0], targets[:0])
    data, steps = FitData(LabelledImages(pixels, targets), none, none), num_steps(recipe, len(pixels))
    jurors = []
    for number in range(JURORS):
        seed = seed_from(recipe.seed, "jury", number)
        juror = build_model(
            section.model,
            num_classes=num_classes,
            size_px=recipe.dataset.size_px,
            pretrained=section.pretrained,
            seed=seed,
            cosine_scale=section.cosine_scale,
        )
        order = mixing.real_order(np.asarray(truth), steps * section.batch, np.random.default_rng(seed))
        slots = mixing.real_only(order).shaped(steps, section.batch)
        fit(juror, data, slots, settings_of(section, seed), choose_compute(recipe.backend.device), on_step=on_step)
        jurors.append(juror)
    return Jury(recipe.backend.device, recipe.dataset.size_px, jurors, range(num_classes))


def open_jury(recipe: Recipe, path: Path, names: Sequence[str]) -> Jury:
    """A trained classifier as the only juror, asked about the classes `names`; raises ModelError for a file that is none."""
    juror, about = open_classifier(path)
    return Jury(recipe.backend.device, about["size_px"], [juror], [about["classes"].index(name) for name in names])
