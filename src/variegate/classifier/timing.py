"""How long a classifier takes to learn, measured on made-up images before anything is written."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from variegate.classifier import labels, mixing
from variegate.classifier.fit import Compute, FitData, LabelledImages, fit, settings_of
from variegate.classifier.models import build_model
from variegate.recipe import TrainSection

MEASURED_STEPS = 3


def step_seconds(section: TrainSection, num_classes: int, size_px: int, compute: Compute) -> float:
    """Seconds of one optimiser step of a section's classifier, from a few on made-up images of `size_px`."""
    rng = np.random.default_rng(0)
    number = max(section.batch, num_classes)
    pixels = rng.integers(0, 256, (number, size_px, size_px, 3), dtype=np.uint8)
    images = LabelledImages(pixels, labels.one_hot(np.arange(number) % num_classes, num_classes))
    none = LabelledImages(pixels[:0], images.targets[:0])
    classifier = build_model(
        section.model,
        num_classes=num_classes,
        size_px=size_px,
        pretrained=False,
        seed=0,
        cosine_scale=section.cosine_scale,
    )
    settings = replace(settings_of(section, 0), evaluations=1)
    order = np.resize(rng.permutation(number), (1 + MEASURED_STEPS, section.batch))
    marks: list[float] = []
    slots = mixing.Slots(np.zeros(order.shape, bool), order)
    fit(
        classifier,
        FitData(real=images, synthetic=none, val=none),
        slots,
        settings,
        compute,
        on_step=lambda _: marks.append(time.monotonic()),
    )
    return (marks[-1] - marks[0]) / MEASURED_STEPS  # the first step sets up kernels
