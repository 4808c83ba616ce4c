"""What training would take, before anything is written: a few steps on made-up images."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from variegate.backends.devices import this_machine
from variegate.classifier import labels, mixing
from variegate.classifier.fit import Compute, FitData, LabelledImages, choose_compute, fit, settings_of
from variegate.classifier.models import build_model
from variegate.recipe import Recipe, TrainSection
from variegate.stages.train.work import num_at_a_time, threads_for

MEASURED_STEPS = 3
START_OF_A_WORKER_S = 10.0
FORWARD = 1 / 3  # of what learning from an image costs


def estimate(
    recipe: Recipe, counts: Mapping[str, Sequence[int]], num_synthetic: int, *, measure: bool = True
) -> dict[str, Any]:
    """Classifiers and steps, and with `measure` the seconds for them all; `counts`: split -> images of each class.

    Weights of pretrained models are not loaded: their values make no difference to the time.
    """
    section, arms = recipe.train, recipe.evaluate.arm_sections
    num_train, num_classes = sum(counts["train"]), len(counts["train"])
    steps = mixing.num_steps(steps=section.steps, epochs=section.epochs, num_real=num_train, batch=section.batch)
    answer: dict[str, Any] = {"classifiers": len(arms) * recipe.evaluate.seeds, "training_steps": steps}
    if not measure:
        return answer
    held_out = sum(sum(images) for split, images in counts.items() if split != "train")
    looked_at = section.evaluations * sum(counts.get("val", ())) + 2 * held_out
    size_px, machine = recipe.dataset.size_px, this_machine()
    compute = choose_compute(recipe.backend.device, threads_for(recipe))
    seconds: dict[str, float] = {}  # of a step, by what the arm's own keys make of the section
    for arm in arms:
        own = recipe.train_of(arm)
        seconds[str(own)] = seconds.get(str(own)) or _step_seconds(own, num_classes, size_px, compute)
    each = [
        seconds[str(recipe.train_of(arm))] * (steps + FORWARD * looked_at / section.batch) for arm in arms
    ] * recipe.evaluate.seeds
    workers = num_at_a_time(
        len(each),
        pixels=steps * section.batch * size_px**2,
        held_bytes=(num_train + held_out + num_synthetic) * 3 * size_px**2,
        compute=compute,
        machine=machine,
    )
    together = max(sum(each) / workers, max(each)) + (START_OF_A_WORKER_S if workers > 1 else 0.0)
    return answer | {"seconds": {"train": round(together, 1)}}


def _step_seconds(section: TrainSection, num_classes: int, size_px: int, compute: Compute) -> float:
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
