"""Accuracy of recipes over several draws of the few training images, paired with real images alone.

    python benchmarks/few_shot.py [--recipe "NAME [KEY=VALUE ...]"]... [--draws 5] [--shots 5] [--keep FOLDER] [KEY=VALUE ...]

Each draw has its own training images (seed 0, 1, ...), the same species and the same test images. Every recipe trains its last arm
only, for the same number of optimiser steps; recipes that would learn the same adapter share it. The gain of each recipe that draws over
each one that does not is paired by draw. One draw gives means without an interval. With --split val the validation accuracy is shown
instead, for choosing settings. Beside the accuracy stand the images that took
part, the seconds of adapting (once for all that share
an adapter), drawing and training, and where the data has them the accuracy of few-shot classes, of the worst cell of class and group,
and of extra test sets. With --keep the runs stay, and the same command goes on where it stopped. Prints one JSON line last.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from variegate.api import run, settle
from variegate.comparison.shelf import Shelf
from variegate.recipe import Recipe, overlaid
from variegate.records import content_id
from variegate.statistics import paired_interval
from variegate.store import RunFolder


@dataclass(frozen=True)
class Draw:
    """What one run found and cost."""

    measures: dict[str, float]  # fractions
    images: int  # synthetic ones that took part
    seconds: dict[str, float]


def runs(options: argparse.Namespace, wanted: str, root: Path) -> list[Draw]:
    """A recipe's last arm on every draw."""
    recipe, *own = wanted.split()
    found = []
    for draw in range(options.first_draw, options.draws):
        keys = [f"seed={draw}", f"dataset.shots={options.shots}", f"evaluate.seeds={options.seeds}"]
        keys += [*options.overrides, *own]
        start = time.perf_counter()
        settled, shelf = settle(options.data, recipe, keys), Shelf(root / "adapters")
        lesson, taught = shelf.folder(settled), shelf.taught(settled).model_dump()
        alone = overlaid(taught, {"evaluate": {"arms": taught["evaluate"]["arms"][-1:]}})
        out = root / f"{recipe}-{content_id(own, options.overrides)[:6]}" / str(draw)
        results = run(None, Recipe.model_validate(alone), out).results
        assert results is not None, "run ends with evaluate"
        found.append(Draw(measures_of(results, options.split), results["synthetic"]["kept"], seconds_of(out, lesson)))
        accuracy = 100 * found[-1].measures["accuracy"]
        print(f"{wanted}, draw {draw}: {accuracy:.1f} % in {time.perf_counter() - start:.0f} s", flush=True)
    return found


def measures_of(results: dict[str, Any], split: str) -> dict[str, float]:
    """Accuracy; on test images also of many-, medium- and few-shot classes, the worst cell and extra test sets, if any."""
    arm = results["arms"][0]
    found = {"accuracy": statistics.mean(seed["selected"][f"{split}_accuracy"] for seed in arm["seeds"])}
    if split == "val":
        return found
    found |= {f"{kind}-shot": part["accuracy"] for kind, part in (arm["shots"] or {}).items()}
    if arm["worst_cell"]:
        found["worst cell"] = arm["worst_cell"]["accuracy"]
    return found | {extra["title"]: extra["arms"][0]["selected"]["accuracy"] for extra in results["extra_tests"]}


def seconds_of(out: Path, lesson: Path | None) -> dict[str, float]:
    """Of adapting (where the adapter was learned), drawing with all that belongs to it, and training."""

    def stages(folder: Path, *names: str) -> float:
        with RunFolder.read(folder) as opened:
            return sum(done[2] for name in names if (done := opened.stage(name)))

    adapt = stages(lesson, "adapt") if lesson else 0.0
    return {
        "adapt": adapt,
        "draw": stages(out, "prompts", "generate", "refine", "curate"),
        "train": stages(out, "train"),
    }


def compared(options: argparse.Namespace, found: dict[str, list[Draw]]) -> dict[str, Any]:
    """Every recipe over the draws, and what those that draw gain over those that do not."""
    draws = {wanted: settle(options.data, wanted.split()[0]).generate.method != "none" for wanted in found}
    answer: dict[str, Any] = {}
    for wanted, done in found.items():
        baselines = [name for name in found if not draws[name]] if draws[wanted] else []
        answer[wanted] = {
            "images": round(statistics.mean(draw.images for draw in done)),
            "seconds": {key: round(statistics.mean(draw.seconds[key] for draw in done), 1) for key in done[0].seconds},
        }
        for measure in done[0].measures:
            values = {name: [draw.measures[measure] for draw in draws_] for name, draws_ in found.items()}
            mine = values[wanted]
            gains = {name: [a - b for a, b in zip(mine, values[name], strict=True)] for name in baselines}
            answer[wanted][measure] = {
                **spread(mine),
                "draws": [round(100 * value, 2) for value in mine],
                **{f"gain over {name}": spread(differences) for name, differences in gains.items()},
            }
    return answer


def as_markdown(answer: dict[str, Any], columns: Sequence[str]) -> str:
    """A table with a row for each recipe.

    >>> print(as_markdown({"none": {"images": 0, "seconds": {"train": 9.0}, "accuracy": spread([0.5])}}, ["accuracy"]))
    | recipe | accuracy | images | train, s |
    |---|---|---|---|
    | none | 50.0 | 0 | 9 |
    """
    gains = list(dict.fromkeys(key for e in answer.values() for m in columns for key in e[m] if key.startswith("gain")))
    heads = [part for measure in columns for part in (measure, *(f"{measure}, {gain}" for gain in gains))]
    seconds = list(next(iter(answer.values()))["seconds"])
    rows = [["recipe", *heads, "images", *(f"{key}, s" for key in seconds)]]
    rows.append(["---"] * len(rows[0]))
    for wanted, entry in answer.items():
        cells = [shown(part) for m in columns for part in (entry[m], *(entry[m].get(gain) for gain in gains))]
        rows.append([wanted, *cells, f"{entry['images']:,}", *(f"{entry['seconds'][key]:.0f}" for key in seconds)])
    return "\n".join("|" + "|".join(row) + "|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in rows)


def shown(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    return f"{part['mean']:.1f}" + ("" if part["low"] is None else f" ({part['low']:.1f} to {part['high']:.1f})")


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
    parser.add_argument("--measure", action="append", help="a column of the table; accuracy by default, JSON has all")
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args(given)
    with tempfile.TemporaryDirectory() as name:
        root = options.keep or Path(name)
        found = {wanted: runs(options, wanted, root) for wanted in options.recipe or ["none", "variegate"]}
        answer = compared(options, found)
    print(as_markdown(answer, options.measure or ["accuracy"]), flush=True)
    facts = {key: getattr(options, key) for key in ("data", "shots", "draws", "seeds", "split", "overrides")}
    print(json.dumps({"benchmark": "few_shot", **facts, "recipes": answer}))


if __name__ == "__main__":
    main()
