"""What training would take, before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from variegate.backends.devices import this_machine
from variegate.classifier import mixing
from variegate.classifier.fit import choose_compute
from variegate.classifier.timing import step_seconds
from variegate.recipe import Recipe
from variegate.stages.train.work import num_at_a_time, threads_for

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
        seconds[str(own)] = seconds.get(str(own)) or step_seconds(own, num_classes, size_px, compute)
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
