"""Accuracy of recipes over several draws of the few training images, paired with real images alone.

    python benchmarks/few_shot.py [--recipe "NAME [KEY=VALUE ...]"]... [--draws 5] [--shots 5] [--keep FOLDER] [KEY=VALUE ...]

Each draw has its own training images (seed 0, 1, ...), the same species and the same test images. Every recipe trains its last arm
only, for the same number of optimiser steps; recipes that would learn the same adapter share it. The gain of each recipe that draws over
each one that does not is paired by draw. One draw gives means without an interval. With --split val the validation accuracy is shown
instead, for choosing settings. With --keep the runs stay, and the same command goes on where it stopped. Prints one JSON line last.
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

from shelf import Shelf

from variegate.api import run, settle
from variegate.records import content_id
from variegate.statistics import paired_interval


def accuracies(options: argparse.Namespace, wanted: str, root: Path) -> list[float]:
    """Accuracy of a recipe's last arm, one value a draw."""
    recipe, *own = wanted.split()
    found = []
    for draw in range(options.first_draw, options.draws):
        keys = [f"seed={draw}", f"dataset.shots={options.shots}", f"evaluate.seeds={options.seeds}"]
        keys += [*options.overrides, *own]
        start = time.perf_counter()
        keys += Shelf(root / "adapters").keys(options.data, recipe, keys)
        arm = settle(options.data, recipe, keys).evaluate.arms[-1]
        out = root / f"{recipe}-{content_id(own, options.overrides)[:6]}" / str(draw)
        results = run(options.data, recipe, out, overrides=[*keys, f"evaluate.arms=[{arm}]"]).results
        assert results is not None, "run ends with evaluate"
        seeds = results["arms"][0]["seeds"]
        found.append(statistics.mean(seed["selected"][f"{options.split}_accuracy"] for seed in seeds))
        print(f"{wanted}, draw {draw}: {100 * found[-1]:.1f} % in {time.perf_counter() - start:.0f} s", flush=True)
    return found


def compared(options: argparse.Namespace, found: dict[str, list[float]]) -> dict[str, Any]:
    """Every recipe over the draws, and what those that draw gain over those that do not."""
    draws = {wanted: settle(options.data, wanted.split()[0]).generate.method != "none" for wanted in found}
    answer: dict[str, Any] = {}
    for wanted, values in found.items():
        answer[wanted] = {**spread(values), "draws": [round(100 * value, 2) for value in values]}
        baselines = [name for name in found if not draws[name]] if draws[wanted] else []
        gains = {name: [a - b for a, b in zip(values, found[name], strict=True)] for name in baselines}
        answer[wanted] |= {f"gain over {name}": spread(differences) for name, differences in gains.items()}
    return answer


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
    parser.add_argument("--recipe", action="append", help="with overrides of its own; none and variegate by default")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--first-draw", type=int, default=0, help="to share the draws out among processes with --keep")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--shots", type=int, default=5)
    parser.add_argument("--split", choices=("test", "val"), default="test")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(given)
    with tempfile.TemporaryDirectory() as name:
        root = options.keep or Path(name)
        found = {wanted: accuracies(options, wanted, root) for wanted in options.recipe or ["none", "variegate"]}
    answer = compared(options, found)
    for wanted, values in answer.items():
        print(f"{wanted}: {values}", flush=True)
    facts = {key: getattr(options, key) for key in ("data", "shots", "draws", "seeds", "split", "overrides")}
    print(json.dumps({"benchmark": "few_shot", **facts, "recipes": answer}))


if __name__ == "__main__":
    main()
