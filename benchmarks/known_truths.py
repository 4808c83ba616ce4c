"""Do comparisons tell the truth where it is known? Trained classifiers, no simulation.

    python benchmarks/known_truths.py [--comparisons 100] [--draws 3] [--keep FOLDER]

Two identical methods: real digits, 5 shots a class; both train on the same images of a draw, with other first weights, order and
augmentation. Every comparison has draws of its own. "No difference seen" must be the verdict in about 95 of 100. Then a plant: of the
second method's wrong answers as many are turned right, by chance, as make it 5 points better. Last line: JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import numpy as np

from variegate.api import run
from variegate.comparison.outcomes import Outcome, read_outcome
from variegate.comparison.results import compare_methods
from variegate.recipe import ArmSection

ARM = ArmSection(name="real", images="real")
PLANTED = 0.05
KEYS = ("dataset.shots=5", "dataset.size_px=16", "evaluate.seeds=2", "train.batch=32", "train.evaluations=2")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as name:
        root = options.keep or Path(name)
        pairs = [trained(root / str(draw), draw, options) for draw in range(options.comparisons * options.draws)]
    rng = np.random.default_rng(0)
    said = {"twin": [], "planted": []}
    for start in range(0, len(pairs), options.draws):
        own = pairs[start : start + options.draws]
        second = {"twin": [pair[1] for pair in own], "planted": [planted(pair[1], rng) for pair in own]}
        for name, outcomes in second.items():
            found = compare_methods({"real": [pair[0] for pair in own], name: outcomes}, "real", [name])
            said[name].append(found[name]["selected"])
    answer = {"benchmark": "known truths", "comparisons": options.comparisons, "draws": options.draws}
    answer |= {"steps": options.steps, "accuracy": round(float(np.mean([one.test("selected") for one, _ in pairs])), 4)}
    for name, entries in said.items():
        gaps = np.array([gap for entry in entries for gap in entry["draws"]])
        answer[name] = {
            "no_difference": sum(entry["verdict"].startswith("no difference") for entry in entries),
            "helps": sum(entry["verdict"].startswith("helps") for entry in entries),
            "mean_difference": round(float(gaps.mean()), 4),
            "sd_of_draws": round(float(gaps.std(ddof=1)), 4),
            "interval_holds_the_truth": sum(
                entry["low"] <= PLANTED * (name == "planted") <= entry["high"] for entry in entries
            ),
        }
    print(json.dumps(answer))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=100, help="(%(default)s)")
    parser.add_argument("--draws", type=int, default=3, help="of each comparison (%(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="of each classifier (%(default)s)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the runs; go on where it stopped")
    return parser.parse_args(arguments)


def trained(out: Path, draw: int, options: argparse.Namespace) -> tuple[Outcome, Outcome]:
    """Two classifiers of one draw: the same images, nothing else in common."""
    keys = (*KEYS, f"seed={draw}", f"train.steps={options.steps}")
    run("builtin:digits", "none", out, overrides=keys, last="evaluate")
    both = read_outcome(out, ARM, 2, None)
    return one_seed(both, 0), one_seed(both, 1)


def one_seed(both: Outcome, seed: int) -> Outcome:
    correct = {weights: values[seed : seed + 1] for weights, values in both.correct.items()}
    return replace(
        both, correct=correct, val={weights: values[seed : seed + 1] for weights, values in both.val.items()}
    )


def planted(outcome: Outcome, rng: np.random.Generator) -> Outcome:
    """Better by PLANTED of the test images on average: wrong answers turned right by chance."""
    correct = {}
    for weights, values in outcome.correct.items():
        wrong = 1.0 - values
        turned = wrong * (rng.random(values.shape) < PLANTED / max(wrong.mean(), PLANTED))
        correct[weights] = values + turned
    return replace(outcome, correct=correct)


if __name__ == "__main__":
    main()
