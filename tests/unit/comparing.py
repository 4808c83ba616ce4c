"""What tests of comparisons share: simulated classifiers, and the methods that they stand for."""

from __future__ import annotations

import numpy as np

from variegate.comparison.outcomes import Outcome
from variegate.comparison.plan import DUPLICATED, REAL, Layout, Method
from variegate.recipe import ArmSection

DRAWS, SEEDS, IMAGES = 5, 2, 200


def outcomes(rng: np.random.Generator, gains: dict[str, float], draws: int = DRAWS) -> dict[str, list[Outcome]]:
    """Simulated methods: images, draws and seeds differ in how hard they are, and a draw suits one method more than another."""
    found: dict[str, list[Outcome]] = {name: [] for name in gains}
    easy = rng.normal(0.5, 1.0, IMAGES)
    for _ in range(draws):
        luck = rng.normal(0.0, 0.2)
        for name, gain in gains.items():
            skill = luck + rng.normal(0.0, 0.05) + rng.normal(0.0, 0.05, (SEEDS, 1)) + gain
            correct = (easy + skill + rng.normal(0.0, 0.5, (SEEDS, IMAGES)) > 0).astype(float)
            val = tuple(float(value) for value in correct[:, :50].mean(axis=1))
            weights = ("selected", "last")
            found[name].append(Outcome(dict.fromkeys(weights, correct), dict.fromkeys(weights, val), COST, None))
    return found


COST = {
    "seconds": {"train": 2.0, "draw": 4.0},
    "energy_j": {"train": 20.0, "draw": 50.0},
    "memory_mb": {"train": 500.0, "draw": 900.0},
    "unet_evaluations": 8,
    "made_elsewhere": False,
}


def layout(*rows: tuple[str, str]) -> Layout:
    arm = ArmSection(name="x", images="real")
    return Layout(tuple(Method(name, kind, "run", arm, name if kind == "recipe" else "") for name, kind in rows), {})  # type: ignore[arg-type]


ROWS = ((REAL, "real"), ("real+cutmix", "classic"), (DUPLICATED, "duplicated"), ("mine", "recipe"))
