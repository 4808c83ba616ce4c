"""The settings an ablation tries: a grid over recipe keys, and which of its points share their drawn images. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from variegate.errors import Problem, RecipeError
from variegate.recipe_file import parse_values
from variegate.records import content_id, seed_from

TRAIN = "train."  # keys of a training: points that differ in these alone share their images


@dataclass(frozen=True, slots=True)
class Candidate:
    """One point of the grid: recipe key -> value; empty is the recipe as it is."""

    settings: tuple[tuple[str, Any], ...]

    @property
    def drawing(self) -> tuple[str, ...]:
        """KEY=VALUE of what changes the images."""
        return tuple(f"{key}={json.dumps(value)}" for key, value in self.settings if not key.startswith(TRAIN))

    @property
    def training(self) -> dict[str, Any]:
        """Keys of `train`, nested, that differ from the recipe's."""
        nested: dict[str, Any] = {}
        for key, value in self.settings:
            if key.startswith(TRAIN):
                *outer, last = key.removeprefix(TRAIN).split(".")
                inner = nested
                for part in outer:
                    inner = inner.setdefault(part, {})
                inner[last] = value
        return nested

    @property
    def name(self) -> str:
        return content_id(self.settings)[:8] if self.settings else "as-it-is"

    @property
    def words(self) -> str:
        """As a command line would say it; values as YAML."""
        return " ".join(f"{key}={json.dumps(value)}" for key, value in self.settings) or "the recipe as it is"


def parse_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """KEY=V,V,... to the key and its values, each read as YAML; raises RecipeError for fewer than two different ones.

    >>> parse_axis("generate.strength=0.5,[0.3, 0.7]")
    ('generate.strength', (0.5, [0.3, 0.7]))
    """
    key, found, given = text.partition("=")
    values = parse_values(given, f"--over {text}") if found else []
    if not key.strip() or len(values) < 2:
        example = "--over generate.strength=0.3,0.5,0.7"
        raise RecipeError(Problem(f"--over {text}", "is not KEY=VALUE,VALUE with two values to choose from", example))
    return key.strip(), tuple(values)


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """The recipe as it is, then every combination of the axes' values, the last axis turning fastest."""
    points = product(*([(key, value) for value in values] for key, values in axes.items()))
    return [Candidate(()), *(Candidate(point) for point in points)]


def thinned(candidates: Sequence[Candidate], most: int, seed: int) -> list[Candidate]:
    """At most so many of them: the first one always, the others at random, in their order."""
    if len(candidates) <= most:
        return list(candidates)
    rng = np.random.default_rng(seed_from(seed, "ablation"))
    chosen = sorted(rng.choice(np.arange(1, len(candidates)), most - 1, replace=False))
    return [candidates[0], *(candidates[place] for place in chosen)]


def by_drawing(candidates: Sequence[Candidate]) -> dict[tuple[str, ...], list[Candidate]]:
    """Candidates that learn from the same images, together."""
    groups: dict[tuple[str, ...], list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.drawing, []).append(candidate)
    return groups
