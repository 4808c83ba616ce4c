"""Accuracy of recipes over several draws of the few training images, paired with real images alone.

Usage: python benchmarks/few_shot.py [--recipes variegate,real-mix] [--draws 5] [--shots 5] [--split test|val] [KEY=VALUE ...]

Each draw is a run of its own (seed 0, 1, ...): other training images, the same species and test images, one classifier an
arm. One draw gives means without an interval. With --split val the validation accuracy is shown instead, for choosing
settings. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from variegate.api import run
from variegate.stages.evaluate.compare import paired_interval


def accuracies(options: argparse.Namespace, recipe: str, root: Path) -> list[dict[str, float]]:
    """One {arm: accuracy} a draw."""
    found = []
    for draw in range(options.draws):
        keys = [f"seed={draw}", f"dataset.shots={options.shots}", f"evaluate.seeds={options.seeds}", *options.overrides]
        start = time.perf_counter()
        results = run(options.data, recipe, root / recipe / str(draw), overrides=keys).results
        assert results is not None, "run ends with evaluate"
        arms = {
            arm["arm"]: statistics.mean(seed["selected"][f"{options.split}_accuracy"] for seed in arm["seeds"])
            for arm in results["arms"]
        }
        print(f"{recipe} draw {draw}: {arms} in {time.perf_counter() - start:.0f} s", flush=True)
        found.append(arms)
    return found


def compared(draws: list[dict[str, float]]) -> dict[str, Any]:
    """Every arm over the draws, and what real+synthetic gains over real; None where one of them was not trained."""
    arms = {arm: spread([draw[arm] for draw in draws]) for arm in draws[0]}
    gains = [draw["real+synthetic"] - draw["real"] for draw in draws if {"real", "real+synthetic"} <= draw.keys()]
    return {"arms": arms, "gain": spread(gains) if gains else None}


def spread(values: list[float]) -> dict[str, float | None]:
    """Mean and 95 % interval over draws, in per cent; one draw has no interval.

    >>> spread([0.25])
    {'mean': 25.0, 'low': None, 'high': None}
    """
    if len(values) < 2:
        return {"mean": round(100 * statistics.mean(values), 2), "low": None, "high": None}
    interval = paired_interval(values)
    return {name: round(100 * getattr(interval, name), 2) for name in ("mean", "low", "high")}


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:meadow")
    parser.add_argument("--recipes", default="variegate")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args(given)
    answer = {}
    with tempfile.TemporaryDirectory() as name:
        for recipe in options.recipes.split(","):
            answer[recipe] = compared(accuracies(options, recipe, Path(name)))
            print(f"{recipe}: {answer[recipe]}", flush=True)
    facts = {
        "benchmark": "few_shot",
        "data": options.data,
        "shots": options.shots,
        "draws": options.draws,
        "split": options.split,
    }
    print(json.dumps({**facts, "overrides": options.overrides, "recipes": answer}))


if __name__ == "__main__":
    main()
