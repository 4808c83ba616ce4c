"""Successive halving (arXiv 1502.07943): all candidates with one seed, the better half with twice as many, and so on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Rung:
    """How many candidates are trained, and with how many seeds in all; earlier rungs' seeds count."""

    candidates: int
    seeds: int


def rungs(candidates: int) -> list[Rung]:
    """Halve until two are left; the better of those is the choice.

    >>> rungs(9)
    [Rung(candidates=9, seeds=1), Rung(candidates=5, seeds=2), Rung(candidates=3, seeds=4), Rung(candidates=2, seeds=8)]
    """
    found, seeds = [Rung(candidates, 1)], 1
    while found[-1].candidates > 2:
        seeds *= 2
        found.append(Rung((found[-1].candidates + 1) // 2, seeds))
    return found


def trainings(candidates: int, closing_seeds: int) -> int:
    """Classifiers that halving so many candidates trains, real images alone and the closing comparison included.

    >>> trainings(9, 3)
    42
    """
    plan = rungs(candidates)
    before = [0, *(rung.seeds for rung in plan)]
    tried = sum(rung.candidates * (rung.seeds - seeds) for rung, seeds in zip(plan, before, strict=False))
    return tried + plan[-1].seeds + 2 * closing_seeds


def most_candidates(budget: int, closing_seeds: int) -> int:
    """The largest number of candidates that so many trainings suffice for; 0 where not even two fit."""
    count = 1
    while trainings(count + 1, closing_seeds) <= budget:
        count += 1
    return count if count > 1 else 0


def best(accuracies: Sequence[float], count: int) -> list[int]:
    """Places of the `count` largest, in their order; of equals the earlier ones.

    >>> best([0.5, 0.7, 0.7, 0.6], 2)
    [1, 2]
    """
    order = sorted(range(len(accuracies)), key=lambda place: (-accuracies[place], place))
    return sorted(order[:count])


@dataclass(frozen=True, slots=True)
class Tried:
    """What one candidate reached: its accuracy with each seed so far, and the rung it came to; the winner's is past the last."""

    accuracies: tuple[float, ...]
    rung: int


def halve(count: int, measure: Callable[[Sequence[int], int, int], Sequence[np.ndarray]]) -> dict[int, Tried]:
    """Place of each of `count` candidates -> what it reached.

    `measure(places, rung, seeds)` gives for each place which images it got right: [seeds, N], seeds counted from the first
    one, so that later rungs add to earlier ones.
    """
    left, plan = list(range(count)), rungs(count)
    tried: dict[int, Tried] = {}
    for number, rung in enumerate(plan, start=1):
        for place, correct in zip(left, measure(left, number, rung.seeds), strict=True):
            tried[place] = Tried(tuple(float(row.mean()) for row in correct), number)
        keep = plan[number].candidates if number < len(plan) else 1
        left = [left[place] for place in best([float(np.mean(tried[place].accuracies)) for place in left], keep)]
    tried[left[0]] = replace(tried[left[0]], rung=len(plan) + 1)
    return tried


@dataclass(frozen=True, slots=True)
class Effect:
    """What a key did in the first rung, where every candidate has the same seeds."""

    key: str
    means: Mapping[str, float]  # value as JSON -> mean accuracy of the candidates that have it
    counts: Mapping[str, int]
    explained: float  # share of the variance between candidates, in [0, 1]


def effect(key: str, values: Sequence[str], accuracies: Sequence[float]) -> Effect:
    """`values` are each candidate's value of the key, as JSON. eta^2 = between-values sum of squares / total."""
    found, scores = np.array(values), np.asarray(accuracies, np.float64)
    means = {value: float(scores[found == value].mean()) for value in dict.fromkeys(values)}
    counts = {value: int((found == value).sum()) for value in means}
    total = float(((scores - scores.mean()) ** 2).sum())
    between = sum(counts[value] * (mean - scores.mean()) ** 2 for value, mean in means.items())
    return Effect(key, means, counts, float(between / total) if total else 0.0)
