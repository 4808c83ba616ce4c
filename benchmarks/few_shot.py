"""Accuracy of recipes over several draws of the few training images, paired with real images alone.

Usage: python benchmarks/few_shot.py [--recipes variegate,real-mix] [--draws 5] [--shots 5] [--split test|val] [KEY=VALUE ...]

Each draw is a run of its own (seed 0, 1, ...): other training pictures, the same species and test pictures, one classifier an
arm. With --split val the validation accuracy is shown instead, for choosing settings. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

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


def spread(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval over draws, in per cent."""
    interval = paired_interval(values)
    return {
        "mean": round(100 * interval.mean, 2),
        "low": round(100 * interval.low, 2),
        "high": round(100 * interval.high, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin:meadow")
    parser.add_argument("--recipes", default="variegate")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    answer = {}
    with tempfile.TemporaryDirectory() as name:
        for recipe in options.recipes.split(","):
            draws = accuracies(options, recipe, Path(name))
            arms = {arm: spread([draw[arm] for draw in draws]) for arm in draws[0]}
            gains = [draw["real+synthetic"] - draw["real"] for draw in draws if "real+synthetic" in draw]
            answer[recipe] = {"arms": arms, "gain": spread(gains) if gains else None}
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
